// The inner loops over the weights, compiled once per instruction set (kernels.inl).
#pragma once

#include <cstdint>

#include "core/group_tallies.h"
#include "core/intervals.h"
#include "core/layer.h"
#include "core/packed_mask.h"
#include "core/test_sizes.h"

namespace lampfast::cpu {

// What a block of elements has on either side of an interval of keys, and how many inside.
struct Classified {
  int below;
  int above;
  int inside;
  // The uncompensated sum of the scaled squares, at most error_bounds::most_plain_terms of them.
  double above_sum;
};

constexpr int classify_block = test_sizes ? 16 : 2048;
constexpr int classify_slack = 64;  // keys behind those inside that may be overwritten or read

// The mask byte of an element inside the interval until its layer's threshold is known. Elements
// below the interval have 0, and those above it 1, as in the finished mask.
constexpr std::uint8_t undecided = 2;

struct KeyStats {
  std::int64_t zeros;
  std::uint64_t smallest;  // key above 0, or the first key that is not finite if there is none
  std::uint64_t largest;
};

// Groups (core/group_pattern.h) are ranked in a tile, where element i of the group in lane g is at
// i * lanes + g. They are copied there from lines, which are contiguous and have whole groups, or
// from rows, which have the same element of each group. Lines and lanes come in multiples of:
constexpr int group_lines = 64;

struct GroupRows {
  int count;
  std::int64_t step;  // from one row to the next
  int length;
  std::int64_t spacing;  // from one element of a row to the next
};

// Groups that lie side by side, in blocks that are evenly spaced.
struct AdjacentGroups {
  int size;
  int pruned;
  std::int64_t blocks;
  std::int64_t lanes;  // groups of a block
  struct Place {
    std::int64_t block;  // from one block to the next
    std::int64_t step;   // from one element of a group to the next
  };
  Place source;
  Place target;
};

// For groups of one size that lie one behind the other; null where there is nothing faster than a
// tile. Of each group, the `pruned` smallest elements go. `mask` writes a byte for every element,
// and returns the largest key.
struct DenseGroups {
  std::uint64_t (*mask)(const void* elements, std::int64_t groups, int pruned, void* kept);
  std::uint64_t (*zero)(void* elements, std::int64_t groups, int pruned);
};

// Elements are passed untyped: each function belongs to one dtype.
struct Kernels {
  // Classifies up to classify_block elements. Writes the keys inside the interval to `inside`, and
  // every element's mask byte to `kept`, unless that is null.
  Classified (*classify)(const void* elements, int count, const KeyInterval& interval, double scale,
                         void* inside, std::uint8_t* kept);
  // Tallies elements, for estimates only: the sum of squares may be off by 2^-12 of itself, as it
  // is added up in float32 (in float64 for float64 elements).
  Tally (*tally)(const void* elements, std::int64_t count, std::uint64_t key, double scale);
  // kept[i] = key(elements[i]) >= threshold.
  void (*mask)(const void* elements, std::int64_t count, std::uint64_t threshold,
               std::uint8_t* kept);
  // Completes a mask that classify wrote: the candidates are the keys of its undecided elements, in
  // the same order, and these get kept[i] = key >= threshold. Returns how many candidates there
  // were. Up to classify_slack keys behind the last of `available` candidates may be read, but no
  // more, even if another thread has written to the mask since.
  std::int64_t (*settle)(std::uint8_t* kept, std::int64_t count, const void* candidates,
                         std::int64_t available, std::uint64_t threshold);
  // Zeroes the elements whose key is below the threshold.
  void (*zero)(void* elements, std::int64_t count, std::uint64_t threshold);
  // The largest key.
  std::uint64_t (*largest)(const void* elements, std::int64_t count);
  KeyStats (*stats)(const void* elements, std::int64_t count);
  // How many elements have the key.
  std::int64_t (*count_equal)(const void* elements, std::int64_t count, std::uint64_t key);
  // As Backend::pack and apply_packed_masks. The first element has the first bit of words[0].
  void (*pack)(const void* elements, std::int64_t count, MaskWord* words);
  void (*apply_packed_mask)(void* elements, std::int64_t count, const MaskWord* words);
  // Writes the magnitudes as doubles.
  void (*magnitudes)(const void* elements, std::int64_t count, void* doubles);
  // Adds the squares of elements, times scale^2, to as many sums. Those above 0 are at least
  // error_bounds::least_tile_square, where the scale could make them underflow.
  void (*add_squares)(const void* elements, std::int64_t count, double scale, double* sums);
  // Copy lines of at least 16 columns to a tile, and back: column c of line l has its place at
  // places[c] + l.
  void (*load_lines)(const void* const* lines, int count, int columns, const int* places,
                     void* tile);
  void (*store_lines)(const void* tile, int count, int columns, const int* places,
                      void* const* lines);
  // Copy rows to the first lanes of a tile, and back.
  void (*load_rows)(const void* elements, const GroupRows& rows, void* tile, int lanes);
  void (*store_rows)(const void* tile, int lanes, void* elements, const GroupRows& rows);
  // Writes 0 in the same place of `kept` for the `pruned` smallest elements of each group in the
  // first `count` lanes, and 1 for the others. Returns the largest key.
  std::uint64_t (*rank_groups)(const void* tile, int lanes, int count, int size, int pruned,
                               std::uint8_t* kept);
  // Zeroes these elements in the tile itself.
  void (*prune_groups)(void* tile, int lanes, int count, int size, int pruned);
  // The same for groups of 2, 4 or 8 that lie side by side, in the memory where they are. `mask`
  // writes a byte for every element, and returns the largest key.
  std::uint64_t (*mask_lanes)(const void* elements, const AdjacentGroups& groups, void* kept);
  void (*zero_lanes)(void* elements, const AdjacentGroups& groups);
  // Zeroes the elements that are not kept.
  void (*keep)(void* elements, const std::uint8_t* kept, int count);
  DenseGroups (*dense_groups)(int size);
};

constexpr int score_block = 64;

// Writes the scores of score_block float32 keys in ascending order. `after` is the sum of the
// squares of all larger elements. Returns the sum of their own squares.
using ScoreKeys = double (*)(const std::uint32_t* keys, double after, float* scores);
ScoreKeys score_keys();

// The kernels for the best instruction set that the processor has, or for the one that LAMPFAST_ISA
// names.
const Kernels& kernels_for(Dtype dtype);

// The name of that instruction set. Throws std::runtime_error if LAMPFAST_ISA names none that the
// processor has.
const char* instruction_set();

#if defined(LAMPFAST_TEST_SIZES)
// Takes another one for the calls that follow; none may be running.
void use_instruction_set(const char* name);
#endif

}  // namespace lampfast::cpu
