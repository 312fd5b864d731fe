#include "sketch.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <utility>

#include "curve.h"
#include "margins.h"
#include "walk.h"

namespace lampfast {
namespace {

// Between two positive numbers, where the elements, which become more, reach the count. `narrowed`
// is told of each number that was tried whether it was too low.
template <class ElementsAt, class Narrowed>
double find(double lowest, double highest, double count, ElementsAt&& elements_at,
            Narrowed&& narrowed) {
  // Bits halve on a scale of logarithms; the last of them are closer than the sketches can tell.
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

// The score of a range at which the curves have `count` elements, or an end; they are left looking
// at it.
double find_score(std::vector<Curve>& curves, double lowest, double highest, double count) {
  const auto elements_at = [&](double score) {
    double elements = 0.0;
    for (Curve& curve : curves) elements += curve.look_at(score);
    return elements;
  };
  const auto narrow = [&](bool is_too_low) {
    for (Curve& curve : curves) curve.narrow(is_too_low);
  };
  for (Curve& curve : curves) curve.start_search();
  const double score = find(lowest, highest, count, elements_at, narrow);
  elements_at(score);
  return score;
}

// The magnitude of a range below which the curves have `count` elements, or an end.
double find_magnitude(const std::vector<Curve>& curves, double lowest, double highest,
                      double count) {
  const auto elements_below = [&](double magnitude) {
    double elements = 0.0;
    for (const Curve& curve : curves) elements += curve.count_below(magnitude);
    return elements;
  };
  return find(lowest, highest, count, elements_below, [](bool) {});
}

// How many layers each is a copy of, itself included: the same elements of them were drawn, so that
// their errors add up.
std::vector<double> copies(const std::vector<Curve>& curves) {
  std::vector<std::pair<double, std::size_t>> totals;
  totals.reserve(curves.size());
  for (std::size_t i = 0; i < curves.size(); ++i) totals.emplace_back(curves[i].total(), i);
  std::sort(totals.begin(), totals.end());
  std::vector<double> result(curves.size());
  for (auto from = totals.begin(); from != totals.end();) {
    const auto to = std::find_if(from, totals.end(),
                                 [&](const auto& other) { return other.first != from->first; });
    for (auto one = from; one != to; ++one) result[one->second] = static_cast<double>(to - from);
    from = to;
  }
  return result;
}

// For the first `count` elements of all layers by their LAMP scores.
Guess guess_by_score(std::vector<Curve>& curves, double wanted) {
  double lowest = most_score;
  for (const Curve& curve : curves) lowest = std::min(lowest, curve.lowest_score());
  const double score = find_score(curves, lowest, most_score, wanted);

  const std::vector<double> alike = copies(curves);
  std::vector<Errors> errors;
  errors.reserve(curves.size());
  double flow = 0.0;
  double count_variance = 0.0;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    errors.push_back(curves[i].errors(score));
    flow += errors[i].flow();
    count_variance += alike[i] * errors[i].count_at_score();
  }
  // As these errors are, the score moves until the counts add up again.
  const double rounding =
      static_cast<double>(curves.size()) / 2.0;  // layers are lines, not elements
  const double count_error = Margins::deviations * std::sqrt(count_variance) + rounding;
  double reach = count_error / flow;
  double low = score;
  double high = score;
  const bool is_linear = reach < 0.25;
  if (!is_linear) {
    low = find_score(curves, lowest, score, wanted - count_error);
    high = find_score(curves, score, most_score, wanted + count_error);
    reach = 0.0;
  }
  Guess guess;
  guess.brackets.reserve(curves.size());
  for (std::size_t i = 0; i < curves.size(); ++i) {
    // Where most elements at the threshold are of one layer, the score follows its sum.
    const double together = is_linear ? count_variance / (flow * flow) -
                                            2.0 * alike[i] * errors[i].count_with_sum() / flow
                                      : 0.0;
    const double margin =
        std::exp(Margins::deviations * std::sqrt(std::max(errors[i].sum + together, 0.0)));
    guess.brackets.push_back(curves[i].bracket(low / margin, high * margin));
  }
  constexpr double slack = 0x1p-4;
  const double margin = std::exp(reach + slack);
  if (low > lowest * margin) guess.scores.low = std::min(low, 1.0) / margin;
  guess.scores.high = high * margin;
  return guess;
}

// For the first `count` elements of all layers by their magnitudes: all have the same threshold.
Guess guess_by_magnitude(const std::vector<Layer>& layers, const std::vector<Curve>& curves,
                         double count) {
  double lowest = std::numeric_limits<double>::infinity();
  double highest = 0.0;
  for (const Curve& curve : curves) {
    if (!curve.is_known()) continue;
    lowest = std::min(lowest, curve.least_magnitude());
    highest = std::max(highest, curve.largest_magnitude());
  }
  Guess guess;
  guess.scores = ScoreRange::of_magnitudes();
  guess.brackets.reserve(layers.size());
  for (const Layer& layer : layers) guess.brackets.push_back({1, not_finite_key(layer.dtype)});
  if (!(lowest < highest)) return guess;

  const double middle = find_magnitude(curves, lowest, highest, count);
  const std::vector<double> alike = copies(curves);
  double variance = 0.0;
  for (std::size_t i = 0; i < curves.size(); ++i) {
    variance += alike[i] * curves[i].count_variance_below(middle);
  }
  const double rounding = static_cast<double>(curves.size()) / 2.0;
  const double error = Margins::deviations * std::sqrt(variance) + rounding;
  const double low = find_magnitude(curves, lowest, middle, count - error);
  const double high = find_magnitude(curves, middle, highest, count + error);
  constexpr double slack = 1.0 + 0x1p-10;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    Bracket& bracket = guess.brackets[i];
    // What lies beyond all that was drawn may be anywhere.
    if (low > lowest * slack) bracket.low = nearest_key(layers[i].dtype, low / slack);
    if (high * slack < highest) bracket.high = nearest_key(layers[i].dtype, high * slack) + 2;
    bracket.low = std::max<std::uint64_t>(bracket.low, 1);
    bracket.high = std::min(std::max(bracket.low, bracket.high), not_finite_key(layers[i].dtype));
  }
  return guess;
}

// For the first elements of each layer by itself.
Guess guess_each(const std::vector<Curve>& curves, const std::vector<std::int64_t>& counts) {
  Guess guess;
  guess.brackets.reserve(curves.size());
  for (std::size_t i = 0; i < curves.size(); ++i) {
    guess.brackets.push_back(curves[i].bracket_of_count(static_cast<double>(counts[i])));
  }
  return guess;
}

}  // namespace

Sketch draw_sketch(const Layer& layer) {
  Sketch sketch;
  constexpr std::int64_t least = tiny ? 16 : 1 << 11;
  constexpr std::int64_t bytes_per_draw = 512;
  const std::int64_t share = layer.size * item_size(layer.dtype) / bytes_per_draw;
  sketch.drawn = std::min(sketch_draws(layer.size), std::max(share, least));
  std::vector<std::uint16_t> drawn;
  drawn.reserve(static_cast<std::size_t>(sketch.drawn));
  with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    using Key = typename Format::Storage;
    const auto* data = reinterpret_cast<const Key*>(layer.data);
    const Walk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
    for (std::int64_t draw = 0; draw < sketch.drawn; ++draw) {
      const std::int64_t at = drawn_position(layer.size, sketch.drawn, draw);
      walk.runs(at, at + 1, [&](auto, const auto& offsets, auto) {
        // What is not finite is the survey's to report.
        const auto key = std::min<Key>(Format::key(data[offsets[0]]), Format::not_finite - 1);
        drawn.push_back(static_cast<std::uint16_t>(key >> sketch_shift<Format>()));
      });
    }
  });
  if (drawn.empty()) return sketch;
  const int largest = *std::max_element(drawn.begin(), drawn.end());
  const int first = std::max(largest - (Sketch::slots - 1), 0);
  sketch.first = static_cast<std::uint64_t>(first);
  for (const int slot : drawn) ++sketch.counts[static_cast<std::size_t>(std::max(slot - first, 0))];
  return sketch;
}

Guess guess_from(const std::vector<Layer>& layers, const std::vector<double>& scales,
                 const std::vector<Sketch>& sketches, const Goal& goal, cpu::Team& team) {
  constexpr std::int64_t weights_per_sketch = 64;  // that take as long
  const auto size = static_cast<std::int64_t>(layers.size());
  std::vector<Curve> curves(layers.size());
  team.for_each(size, size * weights_per_sketch, [&](std::int64_t task, int) {
    const auto i = static_cast<std::size_t>(task);
    curves[i] = Curve(layers[i], sketches[i], scales[i]);
  });
  const auto count = static_cast<double>(goal.count());
  switch (goal.ranking) {
    case Ranking::lamp:
      return guess_by_score(curves, count);
    case Ranking::magnitude:
      return guess_by_magnitude(layers, curves, count);
    case Ranking::each_apart:
      break;
  }
  return guess_each(curves, goal.counts);
}

}  // namespace lampfast
