// A layer's elements in ascending order, cut into intervals of keys with rigorous bounds on their
// scores. From these follow bounds on how many elements score at most a given number.
#pragma once

#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/partition.h"
#include "core/selection_spec.h"

namespace lampfast {

// A key, and how many elements have it.
struct KeyCount {
  std::uint64_t key;
  std::int64_t count;
};

// Elements with keys in [first, last], consecutive in the layer's order.
struct ScoredInterval {
  std::uint64_t first;
  std::uint64_t last;
  std::int64_t before;  // elements of the layer that come earlier
  std::int64_t count;
  double after;  // the sum of the scaled squares of all that come later
  // Rigorous bounds on the scores of its elements or, if magnitudes rank them, their magnitudes.
  double least_score;
  double most_score;

  bool is_one_key() const { return first == last; }  // nothing is left to find out
  std::int64_t end() const { return before + count; }
};

class RankBounds {
 public:
  RankBounds() = default;

  // From the bins of a partition or, where the candidates have been sorted, from the counts of
  // their keys. Of all that scores above `scores`, only the next interval stays separate.
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Partition& partition,
             const ScoreInterval& scores);
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Sides& sides,
             const std::vector<KeyCount>& counts, const ScoreInterval& scores);

  // Merges all intervals inside the partition's interval but the one with the element at a position
  // of the layer's order.
  void separate_only(std::int64_t position, const Sides& sides);

  // Bounds on how many elements score at most t (they are the first in the layer's order). t must
  // be at least error_bounds::least_score unless magnitudes rank the elements.
  std::int64_t rank_lower_bound(double t) const;
  std::int64_t rank_upper_bound(double t) const;

  // The interval that holds the element at a position of the layer's order, which must be less than
  // the layer's size.
  const ScoredInterval* at_rank(std::int64_t position) const;

  // The first interval that may have elements that score at least t, else the last one. There must
  // be an interval.
  const ScoredInterval* reaching(double t) const;

  const std::vector<ScoredInterval>& intervals() const { return intervals_; }
  double square(std::uint64_t key) const;  // scaled, as the sums are
  double magnitude(std::uint64_t key) const;
  // The relative margin for comparing two scores that follow from the intervals' sums.
  double margin() const { return margin_; }

 private:
  class Builder;

  void drop_irrelevant(const Sides& sides, const ScoreInterval& scores);
  void merge(std::size_t begin, std::size_t end);
  bool is_divided(const ScoredInterval& interval) const;

  Dtype dtype_{};
  Ranking ranking_{};
  double scale_ = 1.0;
  double margin_ = 0.0;
  std::vector<ScoredInterval> intervals_;
};

}  // namespace lampfast
