// The estimate from coarse histograms: from each an empirical distribution of its layer's
// magnitudes, and from all of them together the score of the last pruned element, with its error.
#include "estimate/estimate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "core/key_format.h"
#include "core/log_histogram.h"
#include "estimate/empirical_cdf.h"

namespace lampfast {
namespace {

// Bisects the interval between two positive numbers for the one at which elements_at, which rises,
// reaches the count. Calls narrowed(is_too_low) for every number that it tries.
template <class ElementsAt, class Narrowed>
double find(double lowest, double highest, double count, ElementsAt&& elements_at,
            Narrowed&& narrowed) {
  // Halving the difference of bit patterns bisects on a logarithmic scale. This difference is less
  // than the histograms can tell.
  constexpr std::uint64_t close_enough = std::uint64_t{1} << 40;
  auto low = bit_cast<std::uint64_t>(lowest);
  auto high = bit_cast<std::uint64_t>(highest);
  while (high > low + close_enough) {
    const std::uint64_t middle = low + (high - low) / 2;
    const bool is_too_low = elements_at(bit_cast<double>(middle)) < count;
    (is_too_low ? low : high) = middle;
    narrowed(is_too_low);
  }
  return bit_cast<double>(high);
}

// The score in [lowest, highest] at which the cdfs together have `count` elements, or one of the
// ends. It is the score that every cdf has looked at last.
double find_score(std::vector<EmpiricalCdf>& cdfs, double lowest, double highest, double count) {
  const auto elements_at = [&](double score) {
    double elements = 0.0;
    for (EmpiricalCdf& cdf : cdfs) elements += cdf.look_at(score);
    return elements;
  };
  const auto narrow = [&](bool is_too_low) {
    for (EmpiricalCdf& cdf : cdfs) cdf.narrow(is_too_low);
  };
  for (EmpiricalCdf& cdf : cdfs) cdf.start_search();
  const double score = find(lowest, highest, count, elements_at, narrow);
  elements_at(score);
  return score;
}

// The magnitude in [lowest, highest] below which the cdfs together have `count` elements, or one of
// the ends.
double find_magnitude(const std::vector<EmpiricalCdf>& cdfs, double lowest, double highest,
                      double count) {
  const auto elements_below = [&](double magnitude) {
    double elements = 0.0;
    for (const EmpiricalCdf& cdf : cdfs) elements += cdf.count_below(magnitude);
    return elements;
  };
  return find(lowest, highest, count, elements_below, [](bool) {});
}

// For every layer, how many layers are copies of it, itself included. The same elements of copies
// are drawn, so their errors add up rather than average out.
std::vector<double> copies(const std::vector<EmpiricalCdf>& cdfs) {
  std::vector<std::pair<double, std::size_t>> totals;
  totals.reserve(cdfs.size());
  for (std::size_t i = 0; i < cdfs.size(); ++i) totals.emplace_back(cdfs[i].total(), i);
  std::sort(totals.begin(), totals.end());
  std::vector<double> result(cdfs.size());
  for (auto from = totals.begin(); from != totals.end();) {
    const auto to = std::find_if(from + 1, totals.end(),
                                 [&](const auto& other) { return other.first != from->first; });
    for (auto one = from; one != to; ++one) result[one->second] = static_cast<double>(to - from);
    from = to;
  }
  return result;
}

// For pruning the first `wanted` elements of all layers by LAMP score.
Estimate estimate_by_score(std::vector<EmpiricalCdf>& cdfs, double wanted) {
  double lowest = most_score;
  for (const EmpiricalCdf& cdf : cdfs) lowest = std::min(lowest, cdf.lowest_score());
  const double score = find_score(cdfs, lowest, most_score, wanted);

  const std::vector<double> copy_counts = copies(cdfs);
  std::vector<Errors> errors;
  errors.reserve(cdfs.size());
  double flow = 0.0;
  double count_variance = 0.0;
  for (std::size_t i = 0; i < cdfs.size(); ++i) {
    errors.push_back(cdfs[i].errors(score));
    flow += errors[i].flow();
    count_variance += copy_counts[i] * errors[i].count_at_score();
  }
  // An error of the counts moves the score until they add up again.
  // Cdfs are continuous, so every count is off by up to half an element.
  const double rounding = static_cast<double>(cdfs.size()) / 2.0;
  const double count_error = interval_deviations * std::sqrt(count_variance) + rounding;
  double reach = count_error / flow;
  double low = score;
  double high = score;
  const bool is_linear = reach < 0.25;
  if (!is_linear) {
    low = find_score(cdfs, lowest, score, wanted - count_error);
    high = find_score(cdfs, score, most_score, wanted + count_error);
    reach = 0.0;
  }
  Estimate estimate;
  estimate.intervals.reserve(cdfs.size());
  for (std::size_t i = 0; i < cdfs.size(); ++i) {
    // Where most elements near the threshold belong to one layer, the score follows that layer's
    // sum, and their errors cancel in part.
    const double score_variance = is_linear
                                      ? count_variance / (flow * flow) -
                                            2.0 * copy_counts[i] * errors[i].count_with_sum() / flow
                                      : 0.0;
    const double margin =
        std::exp(interval_deviations * std::sqrt(std::max(errors[i].sum + score_variance, 0.0)));
    estimate.intervals.push_back(cdfs[i].interval(low / margin, high * margin));
  }
  constexpr double slack = 0x1p-4;
  const double margin = std::exp(reach + slack);
  if (low > lowest * margin) estimate.scores.low = std::min(low, 1.0) / margin;
  estimate.scores.high = high * margin;
  return estimate;
}

// For pruning the first `count` elements of all layers by magnitude: all layers have the same
// threshold.
Estimate estimate_by_magnitude(const std::vector<Layer>& layers,
                               const std::vector<EmpiricalCdf>& cdfs, double count) {
  double lowest = std::numeric_limits<double>::infinity();
  double highest = 0.0;
  for (const EmpiricalCdf& cdf : cdfs) {
    if (!cdf.is_known()) continue;
    lowest = std::min(lowest, cdf.least_magnitude());
    highest = std::max(highest, cdf.largest_magnitude());
  }
  Estimate estimate;
  estimate.scores = ScoreInterval::of_magnitudes();
  estimate.intervals.reserve(layers.size());
  for (const Layer& layer : layers) estimate.intervals.push_back({1, not_finite_key(layer.dtype)});
  if (!(lowest < highest)) return estimate;

  const double middle = find_magnitude(cdfs, lowest, highest, count);
  const std::vector<double> copy_counts = copies(cdfs);
  double variance = 0.0;
  for (std::size_t i = 0; i < cdfs.size(); ++i) {
    variance += copy_counts[i] * cdfs[i].count_variance_below(middle);
  }
  const double rounding = static_cast<double>(cdfs.size()) / 2.0;
  const double error = interval_deviations * std::sqrt(variance) + rounding;
  const double low = find_magnitude(cdfs, lowest, middle, count - error);
  const double high = find_magnitude(cdfs, middle, highest, count + error);
  constexpr double slack = 1.0 + 0x1p-10;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    KeyInterval& interval = estimate.intervals[i];
    // Elements beyond the magnitudes that were drawn may be anywhere.
    if (low > lowest * slack) interval.low = nearest_key(layers[i].dtype, low / slack);
    if (high * slack < highest) interval.high = nearest_key(layers[i].dtype, high * slack) + 2;
    interval.low = std::max<std::uint64_t>(interval.low, 1);
    interval.high =
        std::min(std::max(interval.low, interval.high), not_finite_key(layers[i].dtype));
  }
  return estimate;
}

// For pruning the first elements of each layer by itself.
Estimate estimate_per_layer(const std::vector<EmpiricalCdf>& cdfs,
                            const std::vector<std::int64_t>& counts) {
  Estimate estimate;
  estimate.intervals.reserve(cdfs.size());
  for (std::size_t i = 0; i < cdfs.size(); ++i) {
    estimate.intervals.push_back(cdfs[i].interval_of_count(static_cast<double>(counts[i])));
  }
  return estimate;
}

}  // namespace

Estimate estimate(Backends& backends, const SelectionSpec& spec,
                  const std::vector<double>& scales) {
  if (spec.ranking == Ranking::lamp) {
    if (auto sampled = backends.estimate(scales, spec.count())) return *std::move(sampled);
  }
  const std::vector<Layer>& layers = backends.layers();
  const std::vector<LogHistogram> histograms = backends.draw(backends.all());
  constexpr std::int64_t weights_per_histogram = 64;  // that are read in the same time
  const auto size = static_cast<std::int64_t>(layers.size());
  std::vector<EmpiricalCdf> cdfs(layers.size());
  backends.pool().for_each(size, size * weights_per_histogram, [&](std::int64_t task, int) {
    const auto i = static_cast<std::size_t>(task);
    cdfs[i] = EmpiricalCdf(layers[i], histograms[i], scales[i]);
  });
  const auto count = static_cast<double>(spec.count());
  switch (spec.ranking) {
    case Ranking::lamp:
      return estimate_by_score(cdfs, count);
    case Ranking::magnitude:
      return estimate_by_magnitude(layers, cdfs, count);
    case Ranking::per_layer:
      break;
  }
  return estimate_per_layer(cdfs, spec.counts);
}

}  // namespace lampfast
