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

}  // namespace

Profile::Profile(Dtype dtype, Ranking ranking, const Survey& survey, const std::vector<Run>& runs,
                 const ScoreRange& range)
    : dtype_(dtype), ranking_(ranking), scale_(survey.scale) {
  const auto [low, high] = survey.sides.bracket;
  // From the top down, since a step needs the sum of all that come later.
  Sum sum;
  const auto push = [&](std::uint64_t first, std::uint64_t last, std::int64_t count,
                        const Sum& own) {
    if (count == 0) return;
    const double after = sum.value();
    sum.add(own);
    if (ranking == Ranking::magnitude) {
      steps_.push_back({first, last, 0, count, after, magnitude(first), magnitude(last)});
      return;
    }
    const double first_square = square(first);
    const double last_square = first == last ? first_square : square(last);
    const double slack = first == last ? margin : Slot::relative_error;
    const double least = first_square > 0.0 ? first_square / sum.value() : 0.0;
    // A bound may be far above all magnitudes, and its square infinite; a score is at most 1.
    const double ratio = last_square / (last_square + after);
    const double most = last_square > 0.0 ? std::fmin(ratio, 1.0) : 0.0;
    steps_.push_back({first, last, 0, count, after, least * (1.0 - slack), most * (1.0 + slack)});
  };
  const auto push_run = [&](std::uint64_t key, std::int64_t count) {
    push(key, key, count, Sum{static_cast<double>(count) * square(key)});
  };
  steps_.reserve((runs.empty() ? survey.slots.size() : runs.size()) + 2);
  push(high, not_finite_key(dtype) - 1, survey.sides.above, survey.sides.above_sum);
  const std::uint64_t width = std::uint64_t{1} << survey.slot_bits;
  for (std::size_t i = runs.size(); i-- > 0;) push_run(runs[i].key, runs[i].count);
  for (std::size_t i = runs.empty() ? survey.slots.size() : 0; i-- > 0;) {
    const Slot& slot = survey.slots[i];
    const std::uint64_t begin = low + i * width;
    const std::uint64_t first = begin + slot.first;
    const std::uint64_t last = std::min(begin + std::min(slot.last, width - 1), high - 1);
    if (first == last) {
      push_run(first, slot.count);
    } else {
      push(first, last, slot.count, Sum{slot.sum});
    }
  }
  // What lies below has a lower bound of 0 on its score, so that its sum is not needed.
  push(0, low - 1, survey.sides.below, Sum{});

  std::reverse(steps_.begin(), steps_.end());
  std::int64_t before = 0;
  for (Step& step : steps_) {
    step.before = before;
    before += step.count;
  }

  // What lies outside the bracket stays apart: only the weights, not the candidates, tell more of
  // it.
  const std::size_t first_inside = survey.sides.below > 0 ? 1 : 0;
  const auto end_inside = [&] { return steps_.size() - (survey.sides.above > 0 ? 1 : 0); };
  const auto high_end = std::partition_point(steps_.begin(), steps_.end(), [&](const Step& step) {
    return step.least_score <= range.high;
  });
  merge(std::max(first_inside, static_cast<std::size_t>(high_end - steps_.begin()) + 1),
        end_inside());
  if (range.has_low()) {
    const auto low_end = std::partition_point(steps_.begin(), steps_.end(), [&](const Step& step) {
      return step.most_score <= range.low;
    });
    merge(first_inside, std::min(end_inside(), static_cast<std::size_t>(low_end - steps_.begin())));
  }
  steps_.shrink_to_fit();
}

// Makes one step of the steps [begin, end).
void Profile::merge(std::size_t begin, std::size_t end) {
  if (begin + 1 >= end) return;
  Step& first = steps_[begin];
  const Step& last = steps_[end - 1];
  first.last = last.last;
  first.count = last.end() - first.before;
  first.after = last.after;
  first.most_score = last.most_score;
  const auto at = [this](std::size_t i) { return steps_.begin() + static_cast<std::ptrdiff_t>(i); };
  steps_.erase(at(begin + 1), at(end));
}

double Profile::magnitude(std::uint64_t key) const { return magnitude_of(dtype_, key); }

// Whether a score can be between those of the step's elements: of a run's elements, each has its
// own score but not its own magnitude.
bool Profile::is_divided(const Step& step) const {
  return step.is_run() && ranking_ != Ranking::magnitude;
}

double Profile::square(std::uint64_t key) const { return scaled_square_of(dtype_, key, scale_); }

std::int64_t Profile::surely_at_most(double t) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.most_score <= t; });
  if (next == steps_.end()) return steps_.empty() ? 0 : steps_.back().end();
  if (!is_divided(*next)) return next->before;
  const double ratio = next->after / square(next->first);
  return next->before + run_at_most(*next, (1.0 + margin) / t, ratio * (1.0 - margin));
}

std::int64_t Profile::possibly_at_most(double t) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.least_score <= t; });
  if (next == steps_.begin()) return 0;
  const Step& step = *(next - 1);
  if (!is_divided(step)) return step.end();
  const double ratio = step.after / square(step.first);
  return step.before + run_at_most(step, (1.0 - margin) / t, ratio * (1.0 + margin));
}

const Step* Profile::step_at(std::int64_t position) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end(),
                                         [&](const Step& step) { return step.end() <= position; });
  return &*next;
}

const Step* Profile::step_reaching(double t) const {
  const auto next = std::partition_point(steps_.begin(), steps_.end() - 1,
                                         [&](const Step& step) { return step.most_score < t; });
  return &*next;
}

}  // namespace lampfast
