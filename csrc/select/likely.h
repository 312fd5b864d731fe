// Where the pruned elements of each layer probably end, within what the rank bounds leave open: the
// elements of an interval are taken to be spread evenly. Only what is read next depends on it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/intervals.h"
#include "core/selection_spec.h"
#include "select/bound_threshold.h"
#include "select/rank_bounds.h"

namespace lampfast {

class LikelyThreshold {
 public:
  // The bounds must be those that follow from the rank bounds.
  LikelyThreshold(const std::vector<RankBounds>& rank_bounds, const SelectionSpec& spec,
                  const ThresholdBounds& bounds);

  // The interval in which a layer's pruned elements probably end.
  const ScoredInterval& interval(std::size_t id) const { return *position(id).interval; }

  // The keys in and next to this interval between which they do, if these have far fewer elements
  // than `count`. None where the interval is so wide that its elements need not be spread evenly.
  std::optional<KeyInterval> keys(std::size_t id, std::int64_t count) const;

 private:
  struct Position {
    const ScoredInterval* interval;
    double part;  // of its elements that come earlier

    double rank() const;
    double flow() const;
    double deviation() const;
  };

  Position position(std::size_t id) const;
  void solve_for(double count);
  std::uint64_t key_at(std::size_t id, double rank) const;

  const std::vector<RankBounds>& rank_bounds_;
  const Ranking ranking_;
  const ThresholdBounds& bounds_;
  double score_ = 0.0;  // of the last element that is pruned
  double error_ = 0.0;  // of this score
};

}  // namespace lampfast
