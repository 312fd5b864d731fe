// A search for the score of the k-th element. At any score t, rank bounds give a lower and an upper
// bound on how many elements score at most t. If the upper bound is below k, t is too low; if the
// lower bound is at least k, t is too high or right.
#include "select/bound_threshold.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/key_format.h"
#include "core/test_sizes.h"

namespace lampfast {
namespace {

// Halfway between two positive doubles in the order of their bits, which is near their geometric
// mean.
double between(double low, double high) {
  const auto a = bit_cast<std::int64_t>(low);
  const auto b = bit_cast<std::int64_t>(high);
  return bit_cast<double>(a + (b - a) / 2);
}

// Bounds on how many of a layer's elements score at most t, for a t in the interval of scores to
// which the range belongs.
RankRange ranks_at(const RankBounds& rank_bounds, double t, const RankRange& range) {
  return {std::clamp(rank_bounds.rank_lower_bound(t), range.begin, range.end),
          std::clamp(rank_bounds.rank_upper_bound(t), range.begin, range.end)};
}

// Open elements of one layer, taken together, and bounds on their scores.
struct ScoreGroup {
  double score;  // the middle of the bounds
  std::int64_t count;
  ScoreInterval bounds;
};

// At most so many for each layer, as more would only tell a little better where to look.
constexpr std::ptrdiff_t most_groups = test_sizes ? 2 : 32;

std::vector<ScoreGroup> open_groups(const std::vector<RankBounds>& rank_bounds,
                                    const ThresholdBounds& known) {
  std::vector<ScoreGroup> groups;
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    const RankRange& range = known.ranges[i];
    if (range.is_empty()) continue;
    const ScoredInterval* first = rank_bounds[i].at_rank(range.begin);
    const ScoredInterval* const end = rank_bounds[i].at_rank(range.last()) + 1;
    const std::ptrdiff_t step = (end - first + most_groups - 1) / most_groups;
    while (first < end) {
      const ScoredInterval* const next = std::min(first + step, end);
      const ScoredInterval* const last = next - 1;
      const double low = std::max(first->least_score, known.scores.low);
      const double high = std::max(std::min(last->most_score, known.scores.high), low);
      const std::int64_t count =
          std::min(last->end(), range.end) - std::max(first->before, range.begin);
      groups.push_back({between(low, high), count, {low, high}});
      first = next;
    }
  }
  return groups;
}

// Where to look first: the bounds of the group in which the count would be reached if all elements
// of every group had the score in its middle. Found by quickselect over the groups' counts.
ScoreInterval likely_scores(const std::vector<RankBounds>& rank_bounds,
                            const ThresholdBounds& known, std::int64_t count) {
  for (const RankRange& range : known.ranges) count -= range.begin;
  std::vector<ScoreGroup> groups = open_groups(rank_bounds, known);
  auto begin = groups.begin();
  auto end = groups.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end,
                     [](const ScoreGroup& a, const ScoreGroup& b) { return a.score < b.score; });
    std::int64_t smaller = 0;
    for (auto group = begin; group != middle; ++group) smaller += group->count;
    (count <= smaller ? end : begin) = middle;
    if (begin == middle) count -= smaller;
  }
  return begin == end ? known.scores : begin->bounds;
}

enum class Verdict { too_low, too_high, open };

// An interval of scores that narrows, with each layer's range of ranks for it: from the lower bound
// of the rank at its low end to the upper bound of the rank at its high end.
class Search {
 public:
  Search(const std::vector<RankBounds>& rank_bounds, ScoreInterval scores,
         std::vector<RankRange> ranges)
      : rank_bounds_(&rank_bounds), scores_(scores), ranges_(std::move(ranges)) {
    for (std::size_t i = 0; i < ranges_.size(); ++i) active_.push_back(i);
    drop_settled();
  }

  // Repeatedly divides the interval at choose(scores) and keeps the part that judge(least, most)
  // names, where least and most bound how many elements of all layers score at most that. Ends when
  // choose returns an end of the interval, or judge cannot tell. Returns the score at which it
  // could not tell, or the high end.
  template <class Choose, class Judge>
  double narrow(Choose&& choose, Judge&& judge) {
    for (;;) {
      const double middle = choose(scores_);
      if (!(middle > scores_.low && middle < scores_.high)) return scores_.high;
      std::int64_t least = settled_;
      std::int64_t most = settled_;
      middle_ranks_.clear();
      for (const std::size_t i : active_) {
        middle_ranks_.push_back(ranks_at((*rank_bounds_)[i], middle, ranges_[i]));
        least += middle_ranks_.back().begin;
        most += middle_ranks_.back().end;
      }
      const Verdict verdict = judge(least, most);
      if (verdict == Verdict::open) return middle;
      for (std::size_t a = 0; a < active_.size(); ++a) {
        RankRange& range = ranges_[active_[a]];
        if (verdict == Verdict::too_low) {
          range.begin = middle_ranks_[a].begin;
        } else {
          range.end = middle_ranks_[a].end;
        }
      }
      (verdict == Verdict::too_low ? scores_.low : scores_.high) = middle;
      drop_settled();
    }
  }

  const ScoreInterval& scores() const { return scores_; }
  const std::vector<RankRange>& ranges() const { return ranges_; }

  // The scores step(interval) at which the bounds on ranks change, for all intervals that are still
  // open: those inside the interval of scores, in ascending order.
  template <class Step>
  std::vector<double> steps(Step&& step) const {
    std::vector<double> steps;
    for (const std::size_t i : active_) {
      const ScoredInterval* const last = (*rank_bounds_)[i].at_rank(ranges_[i].last());
      for (const auto* each = (*rank_bounds_)[i].at_rank(ranges_[i].begin); each <= last; ++each) {
        const double at = step(*each);
        if (at > scores_.low && at < scores_.high) steps.push_back(at);
      }
    }
    std::sort(steps.begin(), steps.end());
    return steps;
  }

 private:
  // Drops the layers with an empty range: their ranks are the same at all scores of the interval.
  void drop_settled() {
    const auto settled = [this](std::size_t i) {
      if (!ranges_[i].is_empty()) return false;
      settled_ += ranges_[i].begin;
      return true;
    };
    active_.erase(std::remove_if(active_.begin(), active_.end(), settled), active_.end());
  }

  const std::vector<RankBounds>* rank_bounds_;
  ScoreInterval scores_;
  std::vector<RankRange> ranges_;
  LayerIds active_;                      // layers whose range is not empty
  std::vector<RankRange> middle_ranks_;  // of the active layers
  std::int64_t settled_ = 0;             // ranks of the others, added up
};

// The next relative distance from a point to try, in the search for one between `inner` and
// `outer`. It starts at 2^-16 and grows by factors of 16 until `outer` is less than two such steps
// away; then it bisects on a logarithmic scale. It returns `outer`, which ends the search, once
// there is less than a factor of 2 between them.
double next_distance(double inner, double outer, double close_enough) {
  constexpr double start = 0x1p-16;
  constexpr double growth = 16.0;
  if (inner == 0.0 && outer > start) return start;
  if (inner == 0.0) return outer > close_enough ? outer / growth : outer;
  if (inner < 1.0 && outer > inner * growth * growth) return inner * growth;
  return outer > inner * 2.0 ? std::sqrt(inner * outer) : outer;
}

// Narrows the ranges to the ranks at both ends of the interval of scores.
void look_up_ends(const std::vector<RankBounds>& rank_bounds, ThresholdBounds& bounds) {
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    RankRange& range = bounds.ranges[i];
    if (bounds.scores.has_low()) {
      range.begin = ranks_at(rank_bounds[i], bounds.scores.low, range).begin;
    }
    range.end = ranks_at(rank_bounds[i], bounds.scores.high, range).end;
  }
}

// Narrows both ends by one search, for as long as the rank bounds decide. Returns the score at
// which they no longer do, or the high end.
double narrow_both(const std::vector<RankBounds>& rank_bounds, std::int64_t count,
                   const ScoreInterval& likely, ThresholdBounds& bounds) {
  Search search(rank_bounds, bounds.scores, std::move(bounds.ranges));
  const auto choose = [&likely, close = bounds.close_enough](const ScoreInterval& within) {
    for (const double end : {likely.low, likely.high}) {
      if (end > within.low && end < within.high) return end;
    }
    if (within.high <= within.low * (1.0 + close)) return within.high;
    return between(within.low, within.high);
  };
  const double open = search.narrow(choose, [count](std::int64_t least, std::int64_t most) {
    if (most < count) return Verdict::too_low;
    return least >= count ? Verdict::too_high : Verdict::open;
  });
  bounds.scores = search.scores();
  bounds.ranges = search.ranges();
  return open;
}

// Divides an interval of scores at the middle one of the steps inside.
class AtSteps {
 public:
  explicit AtSteps(std::vector<double> steps) : steps_(std::move(steps)) {}

  double operator()(const ScoreInterval& within) const {
    const auto begin = std::upper_bound(steps_.begin(), steps_.end(), within.low);
    const auto end = std::lower_bound(begin, steps_.end(), within.high);
    return begin == end ? within.high : *(begin + (end - begin) / 2);
  }

 private:
  std::vector<double> steps_;
};

// Narrows each end by a search of its own, starting from a score at which the rank bounds do not
// decide.
void narrow_each(const std::vector<RankBounds>& rank_bounds, std::int64_t count, double open,
                 ThresholdBounds& bounds) {
  std::vector<RankRange> below = bounds.ranges;
  std::vector<RankRange> above = bounds.ranges;
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    const RankRange middle = ranks_at(rank_bounds[i], open, bounds.ranges[i]);
    below[i].end = middle.end;
    above[i].begin = middle.begin;
  }
  Search low_end(rank_bounds, {bounds.scores.low, open}, std::move(below));
  const auto downwards = [open, close = bounds.close_enough](const ScoreInterval& within) {
    return open * (1.0 - next_distance(1.0 - within.high / open, 1.0 - within.low / open, close));
  };
  const auto is_low = [count](std::int64_t, std::int64_t most) {
    return most < count ? Verdict::too_low : Verdict::too_high;
  };
  low_end.narrow(downwards, is_low);
  if (bounds.is_thorough) {
    const auto before = [](const ScoredInterval& each) {
      return std::nextafter(each.least_score, 0.0);
    };
    low_end.narrow(AtSteps(low_end.steps(before)), is_low);
  }
  Search high_end(rank_bounds, {open, bounds.scores.high}, std::move(above));
  const auto upwards = [open, close = bounds.close_enough](const ScoreInterval& within) {
    return open * (1.0 + next_distance(within.low / open - 1.0, within.high / open - 1.0, close));
  };
  const auto is_high = [count](std::int64_t least, std::int64_t) {
    return least >= count ? Verdict::too_high : Verdict::too_low;
  };
  high_end.narrow(upwards, is_high);
  if (bounds.is_thorough) {
    const auto at_end = [](const ScoredInterval& each) { return each.most_score; };
    high_end.narrow(AtSteps(high_end.steps(at_end)), is_high);
  }
  bounds.scores.low = low_end.scores().low;
  bounds.scores.high = high_end.scores().high;
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    bounds.ranges[i] = {low_end.ranges()[i].begin, high_end.ranges()[i].end};
  }
}

}  // namespace

ThresholdBounds::ThresholdBounds(const std::vector<Layer>& layers, const SelectionSpec& spec,
                                 bool thorough)
    : is_thorough(thorough) {
  // So few elements have scores as close as by default that select_exact.h can tell them apart; but
  // all magnitudes of a float64 layer may be closer.
  if (spec.ranking == Ranking::magnitude) {
    scores = ScoreInterval::of_magnitudes();
    const auto is_float64 = [](const Layer& layer) { return layer.dtype == Dtype::float64; };
    if (std::any_of(layers.begin(), layers.end(), is_float64)) close_enough = 0x1p-52;
  }
  ranges.reserve(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const bool is_known = spec.ranking == Ranking::per_layer;
    ranges.push_back(is_known ? RankRange{spec.counts[i], spec.counts[i]}
                              : RankRange{0, layers[i].size});
  }
}

ThresholdBounds bound_threshold(const std::vector<RankBounds>& rank_bounds,
                                const SelectionSpec& spec, ThresholdBounds bounds) {
  if (spec.ranking == Ranking::per_layer) return bounds;  // the ranks are given
  const std::int64_t count = spec.count();
  look_up_ends(rank_bounds, bounds);
  const ScoreInterval likely = likely_scores(rank_bounds, bounds, count);
  bounds.likely_score = between(likely.low, likely.high);
  const double open = narrow_both(rank_bounds, count, likely, bounds);
  if (open != bounds.scores.high) narrow_each(rank_bounds, count, open, bounds);
  if (bounds.is_thorough) {
    const ScoreInterval now = likely_scores(rank_bounds, bounds, count);
    bounds.likely_score = between(now.low, now.high);
  }
  return bounds;
}

}  // namespace lampfast
