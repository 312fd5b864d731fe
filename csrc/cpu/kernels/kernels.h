// The inner loops over the weights, compiled once for every instruction set (kernels.inl).
#pragma once

#include <cstdint>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/packed_mask.h"
#include "core/test_sizes.h"

namespace lampfast::cpu {

// A block of keys against a interval.
struct Classified {
  int below;
  int above;
  int inside;
  double
      above_sum;  // of scaled squares, of at most Compensatederror_bounds::most_plain_terms terms
};

constexpr int classify_block = test_sizes ? 16 : 2048;
constexpr int classify_slack = 64;  // keys behind those inside that may be overwritten

// What a mask says of an element inside the interval until its layer's threshold is known; one
// below it is 0, one above it 1, as in the finished mask.
constexpr std::uint8_t undecided = 2;

// Elements are passed untyped; each function belongs to one dtype and knows it.
struct Kernels {
  // The keys of up to classify_block elements; those inside [low, high) are written to `inside`,
  // and what the interval says of each to `kept`, unless that is null.
  Classified (*classify)(const void* elements, int count, const KeyInterval& interval, double scale,
                         void* inside, std::uint8_t* kept);
  // kept[i] = key(elements[i]) >= threshold.
  void (*mask)(const void* elements, std::int64_t count, std::uint64_t threshold,
               std::uint8_t* kept);
  // Completes what classify wrote: for each undecided element, in turn, the next of the candidates
  // is its key, and kept[i] = key >= threshold. How many candidates there were. Those behind them,
  // classify_slack keys, may be read.
  std::int64_t (*settle)(std::uint8_t* kept, std::int64_t count, const void* candidates,
                         std::uint64_t threshold);
  // Elements whose key is below the threshold become zero.
  void (*zero)(void* elements, std::int64_t count, std::uint64_t threshold);
  // The largest key.
  std::uint64_t (*largest)(const void* elements, std::int64_t count);
  // The smallest key that is not zero; where there is none, not less than any that is not finite.
  std::uint64_t (*smallest)(const void* elements, std::int64_t count);
  // How many elements have the key.
  std::int64_t (*count_equal)(const void* elements, std::int64_t count, std::uint64_t key);
  // As Backend::pack and apply_packed_masks, of the elements that the words have bits for from the
  // first one's first bit on.
  void (*pack)(const void* elements, std::int64_t count, MaskWord* words);
  void (*apply_packed_mask)(void* elements, std::int64_t count, const MaskWord* words);
};

constexpr int score_block = 64;

// Scores score_block magnitudes of float32 in ascending order, that are followed by others whose
// squares add up to `after`; the sum of their own squares.
using ScoreKeys = double (*)(const std::uint32_t* keys, double after, float* scores);
ScoreKeys score_keys();

// For the best instruction set that the processor has, or the one that LAMPFAST_ISA names.
const Kernels& kernels_for(Dtype dtype);

// The name of that instruction set. Throws std::runtime_error where LAMPFAST_ISA names none that
// the processor has.
const char* instruction_set();

}  // namespace lampfast::cpu
