// Intervals of keys and of scores, in which a layer's threshold and the score of the last pruned
// element are sought.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/error_bounds.h"

namespace lampfast {

// Above all keys.
constexpr std::uint64_t no_key = ~std::uint64_t{0};

// Magnitude keys (key_format.h) in [low, high).
struct KeyInterval {
  std::uint64_t low;
  std::uint64_t high;

  bool contains(const KeyInterval& other) const { return other.low >= low && other.high <= high; }
  bool operator==(const KeyInterval& other) const { return low == other.low && high == other.high; }
};

// The interval (low, high] of scores in which the last of the k pruned elements lies. Where it
// bounds that score, it certainly does: fewer than k elements score at most `low`, and at least k
// score at most `high`. Where it estimates the score, it probably does.
//
// The bounds do not tell apart scores below `least`, which only float64 layers have, and `low` is
// never smaller. If magnitudes rank the elements, this is an interval of magnitudes, and all of
// them are told apart.
struct ScoreInterval {
  double low = error_bounds::least_score;
  double high = 2.0;  // above all scores
  double least = error_bounds::least_score;

  bool has_low() const { return low > least; }

  static ScoreInterval of_magnitudes() { return {0.0, std::numeric_limits<double>::max(), 0.0}; }
};

// Where each layer's threshold and the score of the last pruned element probably lie. A layer whose
// interval misses its threshold is read again; the answer is the same.
struct Estimate {
  std::vector<KeyInterval> intervals;  // one for each layer
  std::vector<bool> tracks_min_max;    // whether it pays that their bins track what they hold
  ScoreInterval scores;
};

}  // namespace lampfast
