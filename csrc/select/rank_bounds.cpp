// Bounds on scores and ranks: rounding may widen them, but never lets the truth lie outside.
#include "select/rank_bounds.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/error_bounds.h"
#include "core/key_format.h"

namespace lampfast {
namespace {

// How many elements of an interval of one key score at most t. `inverse` is 1/t and
// `after_over_square` is after/q. The interval's elements, last to first, have the suffix sums
// after + q, after + 2q, ..., where q is the key's square: 1/score = after/q + 1, after/q + 2, ...
// So the m-th element from the end scores at most t if and only if m >= 1/t - after/q.
std::int64_t count_at_most(const ScoredInterval& interval, double inverse,
                           double after_over_square) {
  const double least = std::ceil(inverse - after_over_square);
  if (!(least > 1.0)) return interval.count;
  if (least > static_cast<double>(interval.count)) return 0;
  return interval.count - static_cast<std::int64_t>(least) + 1;
}

}  // namespace

// Builds the intervals from the top down, since each needs the sum of all that come later.
class RankBounds::Builder {
 public:
  Builder(RankBounds& bounds, std::size_t intervals) : bounds_(bounds) {
    bounds_.intervals_.reserve(intervals);
  }

  void push_key(std::uint64_t key, std::int64_t count) {
    push(key, key, count, CompensatedSum{static_cast<double>(count) * bounds_.square(key)});
  }

  void push_bin(std::uint64_t first, std::uint64_t last, const Bin& bin) {
    if (first == last) {
      push_key(first, bin.count);
    } else {
      push(first, last, bin.count, CompensatedSum{bin.sum});
    }
  }

  void push_above(const Sides& sides) {
    push(sides.interval.high, not_finite_key(bounds_.dtype_) - 1, sides.above, sides.above_sum);
  }

  // Scores below the partition's interval are only known to be at least 0, so their sum is not
  // needed.
  void push_below(const Sides& sides) {
    push(0, sides.interval.low - 1, sides.below, CompensatedSum{});
  }

  void finish() {
    auto& intervals = bounds_.intervals_;
    std::reverse(intervals.begin(), intervals.end());
    std::int64_t before = 0;
    for (ScoredInterval& interval : intervals) {
      interval.before = before;
      before += interval.count;
    }
  }

 private:
  void push(std::uint64_t first, std::uint64_t last, std::int64_t count,
            const CompensatedSum& squares) {
    if (count == 0) return;
    const double after = sum_.value();
    sum_.add(squares);
    ScoredInterval interval{first, last, 0, count, after, 0.0, 0.0};
    if (bounds_.ranking_ == Ranking::magnitude) {
      interval.least_score = bounds_.magnitude(first);
      interval.most_score = bounds_.magnitude(last);
    } else {
      bound_scores(interval);
    }
    bounds_.intervals_.push_back(interval);
  }

  // The first element of an interval has its least score, with all of the interval in the sum; the
  // last one has its greatest, with only itself in the sum.
  void bound_scores(ScoredInterval& interval) const {
    const double first = bounds_.square(interval.first);
    const double last = interval.is_one_key() ? first : bounds_.square(interval.last);
    // The last key may be larger than any in the layer, and its square infinite, which makes the
    // ratio NaN; a score is at most 1.
    const double ratio = last / (last + interval.after);
    // Not a number where another thread has made weights larger than the scale allows for.
    const double least = first > 0.0 ? std::fmax(first / sum_.value(), 0.0) : 0.0;
    const double most = last > 0.0 ? std::fmin(ratio, 1.0) : 0.0;
    interval.least_score = least * (1.0 - bounds_.margin_);
    interval.most_score = most * (1.0 + bounds_.margin_);
  }

  RankBounds& bounds_;
  CompensatedSum sum_;  // of the intervals so far
};

RankBounds::RankBounds(Dtype dtype, Ranking ranking, double scale, const Partition& partition)
    : dtype_(dtype),
      ranking_(ranking),
      scale_(scale),
      read_(partition.sides.interval),
      margin_(partition.bin_bits == 0 ? error_bounds::score_from_counts
                                      : error_bounds::score_from_bins +
                                            error_bounds::score_margin(partition.counted_error)),
      margin_outside_(margin_) {
  const auto& [low, high] = partition.sides.interval;
  const std::uint64_t width = std::uint64_t{1} << partition.bin_bits;
  Builder builder(*this, partition.bins.size() + 2);
  builder.push_above(partition.sides);
  for (std::size_t i = partition.bins.size(); i-- > 0;) {
    const Bin& bin = partition.bins[i];
    const std::uint64_t begin = low + i * width;
    const std::uint64_t last = std::min(begin + std::min(bin.last, width - 1), high - 1);
    builder.push_bin(begin + bin.first, last, bin);
  }
  builder.push_below(partition.sides);
  builder.finish();
}

RankBounds::RankBounds(Dtype dtype, Ranking ranking, double scale, const Sides& sides,
                       const std::vector<KeyCount>& counts)
    : dtype_(dtype),
      ranking_(ranking),
      scale_(scale),
      read_(sides.interval),
      margin_(error_bounds::score_from_counts),
      margin_outside_(margin_) {
  Builder builder(*this, counts.size() + 2);
  builder.push_above(sides);
  for (std::size_t i = counts.size(); i-- > 0;) builder.push_key(counts[i].key, counts[i].count);
  builder.push_below(sides);
  builder.finish();
}

// An interval that reaches into the one of the last read is cut off there: how many of its elements
// are left follows from the counts beside that.
void RankBounds::add_known(const RankBounds& known) {
  if (known.intervals_.empty() || intervals_.empty()) return;
  const std::int64_t size = intervals_.back().end();
  const bool has_below = intervals_.front().last < read_.low;
  const bool has_above = intervals_.back().first >= read_.high;
  const ScoredInterval& below = intervals_.front();
  const ScoredInterval& above = intervals_.back();
  const std::int64_t end_below = has_below ? below.end() : 0;
  const std::int64_t begin_above = has_above ? above.before : size;
  RankBounds all;
  std::vector<ScoredInterval>& parts = all.intervals_;
  for (const ScoredInterval& each : known.intervals_) {
    if (each.last < read_.low) {
      parts.push_back(each);
    } else if (each.first < read_.low && each.before < end_below) {
      parts.push_back({each.first, read_.low - 1, each.before, end_below - each.before, below.after,
                       each.least_score, std::fmin(each.most_score, below.most_score)});
    }
  }
  parts.insert(parts.end(), intervals_.begin() + (has_below ? 1 : 0),
               intervals_.end() - (has_above ? 1 : 0));
  for (const ScoredInterval& each : known.intervals_) {
    if (each.first >= read_.high) {
      parts.push_back(each);
    } else if (each.last >= read_.high && each.end() > begin_above) {
      parts.push_back({read_.high, each.last, begin_above, each.end() - begin_above, each.after,
                       std::fmax(each.least_score, above.least_score), each.most_score});
    }
  }
  if (!all.is_whole(size)) return;
  intervals_ = std::move(parts);
  margin_outside_ = std::max(known.margin_, known.margin_outside_);
  order_bounds();
}

// Whether the intervals hold every position of the layer's order once.
bool RankBounds::is_whole(std::int64_t size) const {
  std::int64_t end = 0;
  for (const ScoredInterval& each : intervals_) {
    if (each.before != end || each.count <= 0) return false;
    end = each.end();
  }
  return end == size;
}

// What was known before may have wider bounds. No element scores more than what comes later.
void RankBounds::order_bounds() {
  for (std::size_t i = 1; i < intervals_.size(); ++i) {
    double& least = intervals_[i].least_score;
    least = std::fmax(least, intervals_[i - 1].least_score);
  }
  for (std::size_t i = intervals_.size(); i-- > 1;) {
    double& most = intervals_[i - 1].most_score;
    most = std::fmin(most, intervals_[i].most_score);
  }
}

void RankBounds::merge_outside(const ScoreInterval& scores) {
  const auto position = [&](auto found) {
    return static_cast<std::size_t>(found - intervals_.begin());
  };
  const auto end_of_high = std::partition_point(
      intervals_.begin(), intervals_.end(),
      [&](const ScoredInterval& interval) { return interval.least_score <= scores.high; });
  merge_apart(position(end_of_high) + 1, intervals_.size());
  if (scores.has_low()) {
    const auto end_of_low = std::partition_point(
        intervals_.begin(), intervals_.end(),
        [&](const ScoredInterval& interval) { return interval.most_score <= scores.low; });
    merge_apart(0, position(end_of_low));
  }
  intervals_.shrink_to_fit();
}

void RankBounds::separate_only(std::int64_t position) {
  const auto found =
      static_cast<std::size_t>(std::partition_point(intervals_.begin(), intervals_.end(),
                                                    [&](const ScoredInterval& interval) {
                                                      return interval.end() <= position;
                                                    }) -
                               intervals_.begin());
  merge_apart(found + 1, intervals_.size());
  merge_apart(0, found);
  intervals_.shrink_to_fit();
}

// Merges the intervals [begin, end), but not what is inside the interval of the last read with what
// lies outside: only a read of the weights, not of the candidates, tells more about that.
void RankBounds::merge_apart(std::size_t begin, std::size_t end) {
  const auto first_from = [&](std::uint64_t key) {
    const auto found =
        std::partition_point(intervals_.begin(), intervals_.end(),
                             [&](const ScoredInterval& interval) { return interval.first < key; });
    return static_cast<std::size_t>(found - intervals_.begin());
  };
  const std::size_t inside = first_from(read_.low);
  const std::size_t above = first_from(read_.high);
  merge(std::max(begin, above), end);
  merge(std::max(begin, inside), std::min(end, above));
  merge(begin, std::min(end, inside));
}

// Makes one interval of the intervals [begin, end).
void RankBounds::merge(std::size_t begin, std::size_t end) {
  if (begin + 1 >= end) return;
  ScoredInterval& first = intervals_[begin];
  const ScoredInterval& last = intervals_[end - 1];
  first.last = last.last;
  first.count = last.end() - first.before;
  first.after = last.after;
  first.most_score = last.most_score;
  const auto at = [this](std::size_t i) {
    return intervals_.begin() + static_cast<std::ptrdiff_t>(i);
  };
  intervals_.erase(at(begin + 1), at(end));
}

double RankBounds::magnitude(std::uint64_t key) const { return magnitude_of(dtype_, key); }

double RankBounds::square(std::uint64_t key) const { return scaled_square_of(dtype_, key, scale_); }

// Whether t can fall between the scores of an interval's elements: those of equal magnitude still
// have different scores, but only one magnitude.
bool RankBounds::is_divided(const ScoredInterval& interval) const {
  return interval.is_one_key() && ranking_ != Ranking::magnitude;
}

std::int64_t RankBounds::rank_lower_bound(double t) const {
  const auto next = std::partition_point(
      intervals_.begin(), intervals_.end(),
      [&](const ScoredInterval& interval) { return interval.most_score <= t; });
  if (next == intervals_.end()) return intervals_.empty() ? 0 : intervals_.back().end();
  if (!is_divided(*next)) return next->before;
  const double ratio = next->after / square(next->first);
  const double wider = margin(*next);
  return next->before + count_at_most(*next, (1.0 + wider) / t, ratio * (1.0 - wider));
}

std::int64_t RankBounds::rank_upper_bound(double t) const {
  const auto next = std::partition_point(
      intervals_.begin(), intervals_.end(),
      [&](const ScoredInterval& interval) { return interval.least_score <= t; });
  if (next == intervals_.begin()) return 0;
  const ScoredInterval& interval = *(next - 1);
  if (!is_divided(interval)) return interval.end();
  const double ratio = interval.after / square(interval.first);
  const double wider = margin(interval);
  return interval.before + count_at_most(interval, (1.0 - wider) / t, ratio * (1.0 + wider));
}

const ScoredInterval* RankBounds::at_rank(std::int64_t position) const {
  const auto next = std::partition_point(
      intervals_.begin(), intervals_.end(),
      [&](const ScoredInterval& interval) { return interval.end() <= position; });
  return &*next;
}

std::int64_t RankBounds::count_inside(const KeyInterval& keys) const {
  std::int64_t count = 0;
  for (const ScoredInterval& each : intervals_) {
    if (each.first < keys.high && each.last >= keys.low) count += each.count;
  }
  return count;
}

const ScoredInterval* RankBounds::reaching(double t) const {
  const auto next =
      std::partition_point(intervals_.begin(), intervals_.end() - 1,
                           [&](const ScoredInterval& interval) { return interval.most_score < t; });
  return &*next;
}

}  // namespace lampfast
