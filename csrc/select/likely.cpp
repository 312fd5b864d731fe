// Solves for the score as the estimate does, on the rank bounds' intervals instead of draws.
#include "select/likely.h"

#include <algorithm>
#include <cmath>

#include "core/test_sizes.h"
#include "estimate/solve.h"

namespace lampfast {
namespace {

// How far what is taken to be likely reaches, in standard deviations.
constexpr double deviations = 3.0;

double width_of(const ScoredInterval& interval) {
  return interval.most_score - interval.least_score;
}

}  // namespace

double LikelyThreshold::Position::rank() const {
  return static_cast<double>(interval->before) + part * static_cast<double>(interval->count);
}

// By how much the rank grows with the score.
double LikelyThreshold::Position::flow() const {
  const bool is_inside = part > 0.0 && part < 1.0;
  return is_inside ? static_cast<double>(interval->count) / width_of(*interval) : 0.0;
}

// Of the rank, were the interval's elements drawn from it at random.
double LikelyThreshold::Position::deviation() const {
  return std::sqrt(static_cast<double>(interval->count) * part * (1.0 - part));
}

LikelyThreshold::LikelyThreshold(const std::vector<RankBounds>& rank_bounds,
                                 const SelectionSpec& spec, const ThresholdBounds& bounds)
    : rank_bounds_(rank_bounds), ranking_(spec.ranking), bounds_(bounds) {
  if (ranking_ != Ranking::per_layer) solve_for(static_cast<double>(spec.count()));
}

void LikelyThreshold::solve_for(double count) {
  double variance = 0.0;
  const auto count_at = [&](double score) {
    score_ = score;
    variance = 0.0;
    ScoreCount sum;
    for (std::size_t i = 0; i < rank_bounds_.size(); ++i) {
      const RankRange& range = bounds_.ranges[i];
      const auto begin = static_cast<double>(range.begin);
      if (range.is_empty()) {
        sum.count += begin;
        continue;
      }
      const Position at = position(i);
      sum.count += std::clamp(at.rank(), begin, static_cast<double>(range.end));
      sum.flow += at.flow();
      variance += at.deviation() * at.deviation();
    }
    return sum;
  };
  // In these units the solver is precise enough.
  const double low = bounds_.scores.low;
  const double width = bounds_.scores.high - low;
  const double unit = width * 0x1p-16;
  const double units = solve(0.0, 0x1p16, std::nan(""), count, [&](double x) {
    ScoreCount found = count_at(low + x * unit);
    found.flow *= unit;
    return found;
  });
  const double flow = count_at(low + units * unit).flow;
  error_ = flow > 0.0 ? deviations * std::sqrt(variance) / flow : width;
}

LikelyThreshold::Position LikelyThreshold::position(std::size_t id) const {
  const RankBounds& rank_bounds = rank_bounds_[id];
  if (ranking_ == Ranking::per_layer) {
    const std::int64_t last = rank_bounds.intervals().back().end() - 1;
    const std::int64_t rank = std::min(bounds_.ranges[id].begin, last);
    const ScoredInterval* const at = rank_bounds.at_rank(rank);
    return {at, static_cast<double>(rank - at->before) / static_cast<double>(at->count)};
  }
  const ScoredInterval* const at = rank_bounds.reaching(score_);
  if (score_ <= at->least_score) return {at, 0.0};
  const double part = (score_ - at->least_score) / width_of(*at);
  return {at, part < 1.0 ? std::max(part, 0.0) : 1.0};
}

std::optional<KeyInterval> LikelyThreshold::keys(std::size_t id, std::int64_t count) const {
  const Position at = position(id);
  const ScoredInterval& interval = *at.interval;
  constexpr double most_ratio = 1.125;
  if (interval.is_one_key() || interval.most_score > interval.least_score * most_ratio) return {};
  // Of keys with so many elements to either side, very few have no first kept element among them.
  constexpr double few = test_sizes ? 1.0 : 8.0;
  double reach = deviations * at.deviation();
  if (ranking_ != Ranking::per_layer) {
    // At a given score, the key is off by what the sum of the squares above it is off.
    const double error_of_sum = ranking_ == Ranking::lamp ? reach * score_ * score_ : 0.0;
    reach = at.flow() * (error_ + error_of_sum);
  }
  reach += few;
  constexpr double least_gain = 1.5;
  if (!(least_gain * 2.0 * reach <= static_cast<double>(count))) return {};
  return KeyInterval{key_at(id, at.rank() - reach), key_at(id, at.rank() + reach) + 1};
}

std::uint64_t LikelyThreshold::key_at(std::size_t id, double rank) const {
  const std::vector<ScoredInterval>& all = rank_bounds_[id].intervals();
  const auto last = static_cast<double>(all.back().end() - 1);
  const double inside = std::clamp(rank, 0.0, last);
  const ScoredInterval& at = *rank_bounds_[id].at_rank(static_cast<std::int64_t>(inside));
  const double part = (inside - static_cast<double>(at.before)) / static_cast<double>(at.count);
  return at.first + static_cast<std::uint64_t>(part * static_cast<double>(at.last - at.first));
}

}  // namespace lampfast
