// Newton's method, safeguarded: solves count(x) = wanted for a count that never falls.
#pragma once

#include <cmath>

#include "estimate/empirical_cdf.h"

namespace lampfast {

// Returns an x in [low, high] at which count_at(x), a ScoreCount, is about `wanted`; an end if all
// counts are smaller or larger. `start` is a guess, or not a number.
template <class CountAt>
double solve(double low, double high, double start, double wanted, CountAt&& count_at) {
  constexpr double close_enough = 0x1p-13;  // a draw tells less
  constexpr int most_steps = 64;
  double x = start > low && start < high ? start : (low + high) / 2.0;
  for (int step = 1; step <= most_steps && high - low > close_enough; ++step) {
    const ScoreCount found = count_at(x);
    const double surplus = found.count - wanted;
    (surplus < 0.0 ? low : high) = x;
    const double newton = x - surplus / found.flow;
    if (std::abs(newton - x) < close_enough) return newton;
    // Every fourth step bisects, so that the interval shrinks fast where the curve is no line.
    const bool is_inside = newton > low && newton < high;
    x = is_inside && step % 4 != 0 ? newton : (low + high) / 2.0;
  }
  return x;
}

}  // namespace lampfast
