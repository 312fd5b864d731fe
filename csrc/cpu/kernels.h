// The inner loops over the weights, compiled once for every instruction set (kernels.inl).
#pragma once

#include <cstdint>

#include "layer.h"

namespace lampfast::cpu {

// A block of keys against a bracket.
struct Classified {
  int below;
  int above;
  int inside;
  double above_sum;  // of scaled squares, of at most Sum::leaf_terms terms
};

constexpr int classify_block = 2048;
constexpr int classify_slack = 64;  // keys that may be overwritten behind those inside

// Elements are passed untyped; each function belongs to one dtype and knows it.
struct Kernels {
  // The keys of up to classify_block elements; those inside [low, high) are written to `inside`.
  Classified (*classify)(const void* elements, int count, const Bracket& bracket, double scale,
                         void* inside);
  // kept[i] = key(elements[i]) >= threshold.
  void (*mask)(const void* elements, std::int64_t count, std::uint64_t threshold,
               std::uint8_t* kept);
  // Elements whose key is below the threshold become zero.
  void (*zero)(void* elements, std::int64_t count, std::uint64_t threshold);
};

// For the best instruction set that the processor has, or the one that LAMPFAST_ISA names.
const Kernels& kernels(Dtype dtype);

// The name of that instruction set. Throws std::runtime_error where LAMPFAST_ISA names none that
// the processor has.
const char* instruction_set();

}  // namespace lampfast::cpu
