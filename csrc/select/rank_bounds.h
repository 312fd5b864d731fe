// A layer's elements in the order of magnitude, cut into intervals of keys whose scores are bounded
// rigorously, and with that how many of them score at most a given number.
#pragma once

#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/partition.h"
#include "core/selection_spec.h"

namespace lampfast {

// Equal keys and how many there are.
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
  double after;        // the sum of the scaled squares of all that come later
  double least_score;  // rigorous bounds on the scores of its elements, or their magnitudes where
  double most_score;   // these are what ranks them

  bool is_one_key() const { return first == last; }  // there is nothing left to find out
  std::int64_t end() const { return before + count; }
};

class RankBounds {
 public:
  RankBounds() = default;

  // From the bins of what a partition found or, where the candidates have been sorted, from their
  // counts by key. Of what lies outside the scores that matter, only the interval next above them
  // is kept apart.
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Partition& partition,
             const ScoreInterval& scores);
  RankBounds(Dtype dtype, Ranking ranking, double scale, const Sides& sides,
             const std::vector<KeyCount>& counts, const ScoreInterval& scores);

  // Bounds on how many elements score at most t; these are the first in the layer's order. For
  // scores t >= error_bounds::least_score, and all magnitudes.
  std::int64_t rank_lower_bound(double t) const;
  std::int64_t rank_upper_bound(double t) const;

  // The interval that holds a position of the layer's order; the position must be less than the
  // size.
  const ScoredInterval* at_rank(std::int64_t position) const;

  // The first interval that may have elements that score at least t, or the last one; there must be
  // one.
  const ScoredInterval* reaching(double t) const;

  const std::vector<ScoredInterval>& intervals() const { return intervals_; }
  double square(std::uint64_t key) const;  // scaled, as the sums are
  double magnitude(std::uint64_t key) const;
  // The relative error of scores that follow from the intervals' sums, two of them compared.
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
