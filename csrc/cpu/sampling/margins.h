// How far what a draw tells of the layers may be off, and with it the score and the thresholds.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <limits>
#include <vector>

#include "core/intervals.h"
#include "cpu/sampling/blocks.h"

namespace lampfast::cpu {

// How a layer's threshold answers to the errors of a draw, linearised around the estimate.
struct Response {
  std::array<float, pairs> count_error{};    // of elements below the threshold, by pair of groups
  std::array<float, pairs> log_sum_error{};  // of the sum of squares above it
  double density = 0.0;                      // elements per unit of log magnitude at the threshold
  double steepness = 2.0;                    // d log score / d log magnitude there

  bool has_errors() const {
    float largest = 0.0F;
    for (std::size_t p = 0; p < pairs; ++p) {
      largest = std::max(largest, std::abs(count_error[p]) + std::abs(log_sum_error[p]));
    }
    return largest > 0.0F;
  }

  double shift(std::size_t pair, double log_score_error) const {
    return (log_sum_error[pair] + log_score_error) / steepness;
  }
};

// What the groups of a draw have on either side of a magnitude, and what they tell of the errors.
struct Split {
  std::array<double, groups> drawn{};
  std::array<double, groups> below{};
  std::array<double, groups> sum_from{};  // of the scaled squares from that magnitude on

  void add(const Split& other) {
    for (std::size_t g = 0; g < groups; ++g) {
      drawn[g] += other.drawn[g];
      below[g] += other.below[g];
      sum_from[g] += other.sum_from[g];
    }
  }

  static double total(const std::array<double, groups>& parts) {
    double sum = 0.0;
    for (const double part : parts) sum += part;
    return sum;
  }

  // The errors of a draw from so many elements.
  void errors(double size, Response& response) const {
    const double all = total(drawn);
    const double mean_sum = total(sum_from) / all;
    // What is drawn has no errors of its own.
    const double open = std::sqrt(std::max(1.0 - all / size, 0.0));
    for (std::size_t p = 0; p < pairs; ++p) {
      const std::size_t a = 2 * p;
      const std::size_t b = a + 1;
      response.count_error[p] = response.log_sum_error[p] = 0.0F;
      if (drawn[a] == 0.0 || drawn[b] == 0.0) continue;
      const double count = below[a] / drawn[a] - below[b] / drawn[b];
      response.count_error[p] = static_cast<float>(open * size * count / 2.0);
      if (mean_sum > 0.0) {
        const double sum = sum_from[a] / drawn[a] - sum_from[b] / drawn[b];
        response.log_sum_error[p] = static_cast<float>(open * sum / mean_sum / 2.0);
      }
    }
  }
};

// How far the score and each layer's threshold may lie from the estimate, on logarithms.
struct Margins {
  double score = 0.0;
  std::vector<double> thresholds;

  // As one pair of groups differs the layers' counts and sums do; the score moves until the counts
  // add up again, and each layer's threshold with it.
  explicit Margins(const std::vector<Response>& responses) : thresholds(responses.size(), 0.0) {
    double flow = 0.0;  // elements per unit of log score
    std::vector<std::size_t> drawn;
    for (std::size_t i = 0; i < responses.size(); ++i) {
      flow += responses[i].density / responses[i].steepness;
      if (responses[i].has_errors()) drawn.push_back(i);
    }
    for (std::size_t p = 0; p < pairs; ++p) {
      double surplus = 0.0;
      for (const std::size_t i : drawn) {
        surplus += responses[i].count_error[p] + responses[i].density * responses[i].shift(p, 0.0);
      }
      const double score_error = flow > 0.0 ? -surplus / flow : 0.0;
      score += score_error * score_error;
      for (const std::size_t i : drawn) {
        const double shift = responses[i].shift(p, score_error);
        thresholds[i] += shift * shift;
      }
    }
    for (std::size_t i = 0; i < responses.size(); ++i) {
      const double steepness = responses[i].steepness;
      if (!responses[i].has_errors()) thresholds[i] = score / (steepness * steepness);
      thresholds[i] = margin(thresholds[i]);
    }
    score = margin(score);
  }

 private:
  static double margin(double squares) {
    const double reach = interval_deviations * std::sqrt(squares) / static_cast<double>(pairs);
    return std::isfinite(reach) ? reach : std::numeric_limits<double>::infinity();
  }
};

}  // namespace lampfast::cpu
