// A layer's elements in ascending order, cut into intervals of keys with rigorous bounds on their
// scores. From these follow bounds on how many elements score at most a given number.
#pragma once

#include <algorithm>
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
  // their keys.
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Partition& partition);
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Sides& sides,
             const std::vector<KeyCount>& counts);

  // Adds what was known before of the keys outside the interval of the last read. If it does not
  // fit, as weights have changed, nothing is added.
  void add_known(const RankBounds& known);

  // Merges intervals that do not matter: of all that scores above `scores`, only the next one stays
  // separate; or all but the one with the element at a position of the layer's order.
  void merge_outside(const ScoreInterval& scores);
  void separate_only(std::int64_t position);

  // Bounds on how many elements score at most t (they are the first in the layer's order). t must
  // be at least error_bounds::least_score unless magnitudes rank the elements.
  std::int64_t rank_lower_bound(double t) const;
  std::int64_t rank_upper_bound(double t) const;

  // The interval that holds the element at a position of the layer's order, which must be less than
  // the layer's size.
  const ScoredInterval* at_rank(std::int64_t position) const;

  // How many elements the intervals that meet these keys have.
  std::int64_t count_inside(const KeyInterval& keys) const;

  // The first interval that may have elements that score at least t, else the last one. There must
  // be an interval.
  const ScoredInterval* reaching(double t) const;

  const std::vector<ScoredInterval>& intervals() const { return intervals_; }
  double square(std::uint64_t key) const;  // scaled, as the sums are
  double magnitude(std::uint64_t key) const;
  // The relative margin for comparing a score that follows from the sums behind an interval. What
  // add_known has cut off just below the last read has its sum from that read.
  double margin(const ScoredInterval& interval) const {
    if (interval.first >= read_.low && interval.last < read_.high) return margin_;
    return interval.last + 1 == read_.low ? std::max(margin_, margin_outside_) : margin_outside_;
  }

 private:
  class Builder;

  bool is_whole(std::int64_t size) const;
  void order_bounds();
  void merge_apart(std::size_t begin, std::size_t end);
  void merge(std::size_t begin, std::size_t end);
  bool is_divided(const ScoredInterval& interval) const;

  Dtype dtype_{};
  Ranking ranking_{};
  double scale_ = 1.0;
  KeyInterval read_{};  // the interval of the last read
  double margin_ = 0.0;
  double margin_outside_ = 0.0;  // outside it: of earlier reads, if there were any
  std::vector<ScoredInterval> intervals_;
};

}  // namespace lampfast
