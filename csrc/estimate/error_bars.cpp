// If the counts of all layers below the threshold score are off by c_i and the logarithms of their
// sums by s_i, the score moves until the counts add up again: with flow_i elements of a layer per
// unit of log score, its logarithm moves by e = - sum(c_i + flow_i s_i) / sum(flow_i).
#include "estimate/error_bars.h"

#include <algorithm>
#include <cmath>

namespace lampfast {

DrawErrors::DrawErrors(const GroupTallies& tallies, double size, double sum) {
  const double drawn = GroupTallies::total(tallies.drawn);
  // What is drawn has no errors of its own.
  const double open = std::sqrt(std::max(1.0 - drawn / size, 0.0)) * size / 2.0;
  for (std::size_t p = 0; p < draw_pairs; ++p) {
    const std::size_t a = 2 * p;
    const std::size_t b = a + 1;
    if (tallies.drawn[a] == 0.0 || tallies.drawn[b] == 0.0) continue;
    const auto difference = [&](const GroupTallies::Groups& groups) {
      return groups[a] / tallies.drawn[a] - groups[b] / tallies.drawn[b];
    };
    count[p] = static_cast<float>(open * difference(tallies.below));
    if (sum > 0.0) log_sum[p] = static_cast<float>(open * difference(tallies.above) / sum);
  }
}

double DrawErrors::log_sum_variance() const {
  double squares = 0.0;
  for (const double error : log_sum) squares += error * error;
  return squares / (draw_pairs * draw_pairs);
}

ErrorBars::ErrorBars(const LayerErrors* layers, std::size_t size) {
  double flow = 0.0;
  double uneven = 0.0;
  std::array<double, draw_pairs> surplus{};
  for (std::size_t i = 0; i < size; ++i) {
    const LayerErrors& layer = layers[i];
    flow += layer.flow;
    uneven += layer.unevenness * layer.unevenness;
    bias += layer.flow * layer.draw.log_sum_variance();
    for (std::size_t p = 0; p < draw_pairs; ++p) {
      surplus[p] += layer.draw.count[p] + layer.flow * layer.draw.log_sum[p];
    }
  }
  double squares = 0.0;
  for (std::size_t p = 0; p < draw_pairs; ++p) {
    squares += surplus[p] * surplus[p];
    if (flow > 0.0) pair_errors[p] = static_cast<float>(-surplus[p] / flow);
  }
  count = std::sqrt(squares / (draw_pairs * draw_pairs) + uneven);
  bias = flow > 0.0 ? bias / flow : 0.0;
  log_score = count > 0.0 ? count / flow : 0.0;  // infinite where no element is near
  uneven_ = flow > 0.0 ? uneven / (flow * flow) : 0.0;
}

double ErrorBars::of_layer(const DrawErrors& draw) const {
  double squares = 0.0;
  for (std::size_t p = 0; p < draw_pairs; ++p) {
    const double error = double{draw.log_sum[p]} + pair_errors[p];
    squares += error * error;
  }
  return std::sqrt(squares / (draw_pairs * draw_pairs) + uneven_);
}

}  // namespace lampfast
