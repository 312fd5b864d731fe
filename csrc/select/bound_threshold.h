// Bound: from all layers' rank bounds, rigorous bounds on the score at which the pruned elements
// end.
#pragma once

#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/selection_spec.h"
#include "select/rank_bounds.h"

namespace lampfast {

// The positions [begin, end) of a layer's order for which it is still open whether they are pruned:
// all before are, none from the end on is.
struct RankRange {
  std::int64_t begin;
  std::int64_t end;

  bool is_empty() const { return begin == end; }
};

// What is known of the score at which the pruned elements end, and of where that is in each layer.
struct ThresholdBounds {
  ScoreInterval scores;           // that surely hold it
  std::vector<RankRange> ranges;  // one for each layer
  double likely_score = 0.0;      // at which it probably lies

  // What is known before anything has been read.
  ThresholdBounds(const std::vector<Layer>& layers, const SelectionSpec& spec);
};

// Narrows the bounds as far as the rank bounds allow; they never grow.
ThresholdBounds bound_threshold(const std::vector<RankBounds>& rank_bounds,
                                const SelectionSpec& spec, ThresholdBounds bounds);

}  // namespace lampfast
