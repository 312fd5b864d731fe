#include "profile.h"

#include <algorithm>
#include <cmath>

#include "magnitude.h"

namespace lampfast {
namespace {

// Wider than the relative errors of the sums (exact_sum.h) and of the arithmetic below together.
constexpr double margin = 0x1p-36;

// How many of a run's elements score at most t, where `inverse` is 1/t. The run's elements, last to
// first, have the suffix sums after + q, after + 2q, ..., so that 1/score = after/q + 1, 2, ...
std::int64_t run_at_most(const Step& run, double inverse, double after_over_square) {
  const double least = std::ceil(inverse - after_over_square);
  if (!(least > 1.0)) return run.count;
  if (least > static_cast<double>(run.count)) return 0;
  return run.count - static_cast<std::int64_t>(least) + 1;
}

// Halfway between two positive doubles in the order of their bits: about their geometric mean.
double between(double low, double high) {
  const auto a = bit_cast<std::int64_t>(low);
  const auto b = bit_cast<std::int64_t>(high);
  return bit_cast<double>(a + (b - a) / 2);
}

}  // namespace

Profile::Profile(Dtype dtype, const Survey& survey, const std::vector<Run>& runs)
    : dtype_(dtype), scale_(survey.scale) {
  const auto [low, high, below_last, above_first] = survey.bracket;
  // From the top down, since a step needs the sum of all that come later.
  Sum sum;
  const auto push = [&](std::uint64_t first, std::uint64_t last, std::int64_t count,
                        const Sum& own) {
    if (count == 0) return;
    const double after = sum.value();
    sum.add(own);
    const double least = square(first) > 0.0 ? square(first) / sum.value() : 0.0;
    const double most = last > 0 ? square(last) / (square(last) + after) : 0.0;
    steps_.push_back({first, last, 0, count, after, least * (1.0 - margin), most * (1.0 + margin)});
  };
  push(above_first, not_finite_key(dtype) - 1, survey.above, survey.above_sum);
  if (runs.empty()) {
    const std::uint64_t width = std::uint64_t{1} << survey.slot_bits;
    for (std::size_t i = survey.slots.size(); i-- > 0;) {
      const std::uint64_t first = low + i * width;
      push(first, std::min(first + width, high) - 1, survey.slots[i].count, survey.slots[i].sum);
    }
  } else {
    for (std::size_t i = runs.size(); i-- > 0;) {
      Sum own;
      own.add(static_cast<double>(runs[i].count) * square(runs[i].key));
      push(runs[i].key, runs[i].key, runs[i].count, own);
    }
  }
  // What lies below has a lower bound of 0 on its score, so that its sum is not needed.
  push(0, below_last, survey.below, Sum{});

  steps_.shrink_to_fit();
  std::reverse(steps_.begin(), steps_.end());
  std::int64_t before = 0;
  for (Step& step : steps_) {
    step.before = before;
    before += step.count;
  }
}

double Profile::square(std::uint64_t key) const { return scaled_square_of(dtype_, key, scale_); }

std::int64_t Profile::surely_at_most(double t) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.most_score <= t; });
  if (next == steps_.end()) return steps_.empty() ? 0 : steps_.back().end();
  if (!next->is_run()) return next->before;
  const double ratio = next->after / square(next->first);
  return next->before + run_at_most(*next, (1.0 + margin) / t, ratio * (1.0 - margin));
}

std::int64_t Profile::possibly_at_most(double t) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.least_score <= t; });
  if (next == steps_.begin()) return 0;
  const Step& step = *(next - 1);
  if (!step.is_run()) return step.end();
  const double ratio = step.after / square(step.first);
  return step.before + run_at_most(step, (1.0 - margin) / t, ratio * (1.0 + margin));
}

const Step* Profile::step_at(std::int64_t position) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.end() <= position; });
  return &*next;
}

ScoreRange locate(const std::vector<Profile>& profiles, std::int64_t count, ScoreRange known) {
  const auto surely_fewer = [&](double t) {
    std::int64_t most = 0;
    for (const Profile& profile : profiles) most += profile.possibly_at_most(t);
    return most < count;
  };
  const auto possibly_fewer = [&](double t) {
    std::int64_t least = 0;
    for (const Profile& profile : profiles) least += profile.surely_at_most(t);
    return least < count;
  };
  constexpr double close_enough = 1.0 + 0x1p-37;
  double low = std::max(known.low, Profile::all_scores.low);
  double high = known.high;
  // One search for both ends for as long as the bounds decide, then one for each.
  double undecided = high;
  while (high > low * close_enough) {
    const double middle = between(low, high);
    if (surely_fewer(middle)) {
      low = middle;
    } else if (!possibly_fewer(middle)) {
      high = undecided = middle;
    } else {
      undecided = middle;
      break;
    }
  }
  for (double end = undecided; end > low * close_enough;) {
    const double middle = between(low, end);
    (surely_fewer(middle) ? low : end) = middle;
  }
  for (double begin = undecided; high > begin * close_enough;) {
    const double middle = between(begin, high);
    (possibly_fewer(middle) ? begin : high) = middle;
  }
  if (low == Profile::all_scores.low) {
    if (!possibly_fewer(low)) return {0.0, low};
    if (!surely_fewer(low)) low = 0.0;
  }
  return {low, high};
}

}  // namespace lampfast
