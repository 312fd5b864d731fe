// Intervals in which a layer's threshold, or the score at which pruning ends, is looked for.
#pragma once

#include <cstdint>
#include <limits>
#include <vector>

#include "core/error_bounds.h"
#include "core/test_sizes.h"

namespace lampfast {

// Magnitude keys (key_format.h) in [low, high).
struct KeyInterval {
  std::uint64_t low;
  std::uint64_t high;

  bool contains(const KeyInterval& other) const { return other.low >= low && other.high <= high; }
  bool operator==(const KeyInterval& other) const { return low == other.low && high == other.high; }
};

// Scores between which the last pruned element lies: for certain, where fewer elements than are to
// be pruned score at most `low`, and at least as many at most `high`; or, as an estimate, probably.
// Nothing is known of what lies below `least`: scores that small, which only a float64 layer may
// have, are not told apart by the bounds. Where magnitudes rank, the interval is one of magnitudes,
// and all of them are told apart.
struct ScoreInterval {
  double low = error_bounds::least_score;
  double high = 2.0;  // above all scores
  double least = error_bounds::least_score;

  bool has_low() const { return low > least; }

  static ScoreInterval of_magnitudes() { return {0.0, std::numeric_limits<double>::max(), 0.0}; }
};

// Where the thresholds and the score probably lie. Where an estimate misses, its layer is read
// again; the answer is the same.
struct Estimate {
  std::vector<KeyInterval> intervals;  // one for each layer
  ScoreInterval scores;
};

// Half of an estimated interval, in standard deviations of the estimate. A wider one stores more
// candidates of every layer, a narrower one has more layers read again.
constexpr double interval_deviations = test_sizes ? 0.5 : 3.5;

}  // namespace lampfast
