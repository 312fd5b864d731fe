// A search for the score: at any t, rank bounds tell at least and at most how many elements score
// at most t. Where even the most are too few, t is too low; where the least are enough, it is too
// high or right.
#include "select/bound_threshold.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/key_format.h"

namespace lampfast {
namespace {

// Halfway between two positive doubles in the order of their bits: about their geometric mean.
double between(double low, double high) {
  const auto a = bit_cast<std::int64_t>(low);
  const auto b = bit_cast<std::int64_t>(high);
  return bit_cast<double>(a + (b - a) / 2);
}

// At least and at most how many of a layer's elements score at most t, for a t in the interval of
// scores to which the range belongs.
RankRange ranks_at(const RankBounds& rank_bounds, double t, const RankRange& range) {
  return {std::clamp(rank_bounds.rank_lower_bound(t), range.begin, range.end),
          std::clamp(rank_bounds.rank_upper_bound(t), range.begin, range.end)};
}

// The open elements of all layers, in groups whose scores have the same bounds.
struct ScoreGroup {
  double score;  // the middle of the bounds
  std::int64_t count;
  ScoreInterval bounds;
};

std::vector<ScoreGroup> open_groups(const std::vector<RankBounds>& rank_bounds,
                                    const ThresholdBounds& known) {
  std::vector<ScoreGroup> groups;
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    const RankRange& range = known.ranges[i];
    if (range.is_empty()) continue;
    const ScoredInterval* last = rank_bounds[i].at_rank(range.end - 1);
    for (const auto* group = rank_bounds[i].at_rank(range.begin); group <= last; ++group) {
      const std::int64_t begin = std::max(group->before, range.begin);
      const std::int64_t end = std::min(group->end(), range.end);
      const double low = std::max(group->least_score, known.scores.low);
      const double high = std::max(std::min(group->most_score, known.scores.high), low);
      groups.push_back({between(low, high), end - begin, {low, high}});
    }
  }
  return groups;
}

// The bounds of the group in which the count is reached if all elements of a group score as its
// middle: where to look first. Found by quickselect over the groups' counts.
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

// An interval of scores, with each layer's range for it: from the ranks that are surely reached at
// its low end to those that are possibly reached at its high end.
class Search {
 public:
  Search(const std::vector<RankBounds>& rank_bounds, ScoreInterval scores,
         std::vector<RankRange> ranges)
      : rank_bounds_(&rank_bounds), scores_(scores), ranges_(std::move(ranges)) {
    for (std::size_t i = 0; i < ranges_.size(); ++i) active_.push_back(i);
    drop_settled();
  }

  // Divides the interval where choose(scores) says, until that is an end of it, for as long as
  // judge(least, most) tells which part to keep, given bounds on how many elements of all layers
  // score at most that. Returns the score at which it could not tell, or the high end.
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

 private:
  // A layer with an empty range has as many elements up to any score of the interval.
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

// The searches end where only few elements score as nearly the same: to tell those apart is for
// select_exact.h.
constexpr double close_enough = 0x1p-22;

// Between two relative distances from a point: the next one to look at. From the point itself
// (near = 0) on it starts in the middle of what matters and grows; once far is in sight it halves.
double next_distance(double near, double far) {
  constexpr double start = 0x1p-16;
  constexpr double growth = 16.0;
  if (near == 0.0 && far > start) return start;
  if (near == 0.0) return far > close_enough ? far / growth : far;
  if (near < 1.0 && far > near * growth * growth) return near * growth;
  return far > near * 2.0 ? std::sqrt(near * far) : far;
}

// The ranges for an interval of scores of which no ranks have been looked up yet.
void look_up_ends(const std::vector<RankBounds>& rank_bounds, ThresholdBounds& bounds) {
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    RankRange& range = bounds.ranges[i];
    if (bounds.scores.has_low()) {
      range.begin = ranks_at(rank_bounds[i], bounds.scores.low, range).begin;
    }
    range.end = ranks_at(rank_bounds[i], bounds.scores.high, range).end;
  }
}

// One search for both ends, for as long as the rank bounds decide. Returns the score at which they
// no longer do, or the high end.
double narrow_both(const std::vector<RankBounds>& rank_bounds, std::int64_t count,
                   const ScoreInterval& likely, ThresholdBounds& bounds) {
  Search search(rank_bounds, bounds.scores, std::move(bounds.ranges));
  const auto half_way = [&likely](const ScoreInterval& within) {
    for (const double end : {likely.low, likely.high}) {
      if (end > within.low && end < within.high) return end;
    }
    if (within.high <= within.low * (1.0 + close_enough)) return within.high;
    return between(within.low, within.high);
  };
  const double open = search.narrow(half_way, [count](std::int64_t least, std::int64_t most) {
    if (most < count) return Verdict::too_low;
    return least >= count ? Verdict::too_high : Verdict::open;
  });
  bounds.scores = search.scores();
  bounds.ranges = search.ranges();
  return open;
}

// From a score at which the rank bounds do not decide, one search for each end.
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
  const auto downwards = [open](const ScoreInterval& within) {
    return open * (1.0 - next_distance(1.0 - within.high / open, 1.0 - within.low / open));
  };
  low_end.narrow(downwards, [count](std::int64_t, std::int64_t most) {
    return most < count ? Verdict::too_low : Verdict::too_high;
  });
  Search high_end(rank_bounds, {open, bounds.scores.high}, std::move(above));
  const auto upwards = [open](const ScoreInterval& within) {
    return open * (1.0 + next_distance(within.low / open - 1.0, within.high / open - 1.0));
  };
  high_end.narrow(upwards, [count](std::int64_t least, std::int64_t) {
    return least >= count ? Verdict::too_high : Verdict::too_low;
  });
  bounds.scores.low = low_end.scores().low;
  bounds.scores.high = high_end.scores().high;
  for (std::size_t i = 0; i < rank_bounds.size(); ++i) {
    bounds.ranges[i] = {low_end.ranges()[i].begin, high_end.ranges()[i].end};
  }
}

}  // namespace

ThresholdBounds::ThresholdBounds(const std::vector<Layer>& layers, const SelectionSpec& spec) {
  if (spec.ranking == Ranking::magnitude) scores = ScoreInterval::of_magnitudes();
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
  return bounds;
}

}  // namespace lampfast
