// Bound: derives, from the rank bounds of all layers, rigorous bounds on the score of the last
// pruned element.
#pragma once

#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/selection_spec.h"
#include "select/rank_bounds.h"

namespace lampfast {

// The ranks [begin, end) of a layer's elements, in ascending order, of which it is still open
// whether they are pruned: all elements before them are, and all behind them are kept.
struct RankRange {
  std::int64_t begin;
  std::int64_t end;

  bool is_empty() const { return begin == end; }
  // The last open rank; if there is none, that of the first kept element.
  std::int64_t last() const { return is_empty() ? begin : end - 1; }
};

// What is known of the score of the last pruned element, and of where each layer's pruned elements
// end.
struct ThresholdBounds {
  ScoreInterval scores;           // certainly hold that score
  std::vector<RankRange> ranges;  // one for each layer
  double likely_score = 0.0;      // its probable value
  double close_enough = 0x1p-22;  // the relative width of `scores` at which searches end
  // Whether both ends are searched for to the last bit, which takes longer, and may spare reads.
  bool is_thorough;

  // What is known before anything has been read.
  ThresholdBounds(const std::vector<Layer>& layers, const SelectionSpec& spec, bool thorough);
};

// Narrows the bounds as far as the rank bounds allow; they never grow.
ThresholdBounds bound_threshold(const std::vector<RankBounds>& rank_bounds,
                                const SelectionSpec& spec, ThresholdBounds bounds);

}  // namespace lampfast
