// The types that every stage passes: a layer, and what is decided about it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <stdexcept>
#include <vector>

namespace lampfast {

enum class Dtype : std::uint8_t {
  float32,
  float16,
  bfloat16,
  float64,
  float8_e4m3fn,
  float8_e5m2,
  boolean,
};

// A strided tensor by its address. Strides count elements; the caller keeps the memory alive.
struct Layer {
  static constexpr int in_host_memory = -1;

  std::byte* data;
  Dtype dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  int device;         // the index of the GPU, or in_host_memory
  std::int64_t size;  // the product of the shape
};

// Positions of layers.
using Chosen = std::vector<std::size_t>;

// A layer's answer. Magnitudes whose key (magnitude.h) is smaller are pruned, and of those equal to
// it the first `ties` in row-major order; `key` is that of the smallest kept element, or the first
// key that is not finite where none is kept.
struct Cut {
  std::uint64_t key;
  std::int64_t ties;
  std::int64_t pruned;
  double threshold;  // the magnitude that the key stands for; infinity where none is kept
};

// Where a layer's answer is looked for: magnitude keys in [low, high).
struct Bracket {
  std::uint64_t low;
  std::uint64_t high;
};

// Scores between which the last pruned element lies: for certain, where fewer elements than are to
// be pruned score at most `low`, and at least as many at most `high`; or probably. Nothing is known
// of what lies below least_score, which is below every score of a float32 layer: smaller ones,
// which a float64 layer may have, are not told apart by the bounds. Where magnitudes rank, the
// range is one of these instead, and all of them are told apart.
struct ScoreRange {
  static constexpr double least_score = 0x1p-800;

  double low = least_score;
  double high = 2.0;  // above all scores
  double least = least_score;

  bool has_low() const { return low > least; }

  static ScoreRange of_magnitudes() { return {0.0, std::numeric_limits<double>::max(), 0.0}; }
};

struct NotFinite : std::invalid_argument {
  NotFinite() : std::invalid_argument("a layer has an element that is NaN or infinite") {}
};

}  // namespace lampfast
