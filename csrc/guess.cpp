#include "guess.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "chunks.h"
#include "cpu/classify.h"
#include "cpu/parallel.h"
#include "exact_sum.h"
#include "magnitude.h"
#include "sample.h"
#include "tiny.h"

namespace lampfast {
namespace {

// Half a bracket, in standard deviations. A miss has one layer read again, and a wider bracket
// makes more candidates in all.
constexpr double deviations = tiny ? 0.5 : 3.0;

struct Middle {
  double log_score;                 // at which the pruned elements end
  std::vector<std::int64_t> ranks;  // of the samples, up to that score
};

// The score at which the samples, scaled up, have `count` elements.
Middle guess_score(const std::vector<Sample>& samples, std::int64_t count) {
  std::vector<std::int64_t> low(samples.size(), 0);
  std::vector<std::int64_t> high;
  for (const Sample& sample : samples) high.push_back(sample.size());
  double low_score = -2000.0;  // as a power of two
  double high_score = 1.0;
  std::vector<std::int64_t> ranks(samples.size());
  // Somewhat closer than the samples can tell.
  double drawn = 0.0;
  double total = 0.0;
  for (const Sample& sample : samples) {
    drawn += static_cast<double>(sample.size());
    total += sample.elements(sample.size());
  }
  const double close_enough = total / std::sqrt(drawn) / 16.0;
  for (int step = 0; step < 44; ++step) {
    double between = 0.0;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      between += samples[i].elements(high[i] - low[i]);
    }
    if (between <= close_enough) break;
    const double middle = (low_score + high_score) / 2.0;
    const double score = std::exp2(middle);
    double fewer = 0.0;
    for (std::size_t i = 0; i < samples.size(); ++i) {
      ranks[i] = samples[i].at_most(score, low[i], high[i]);
      fewer += samples[i].elements(ranks[i]);
    }
    const bool too_low = fewer < static_cast<double>(count);
    (too_low ? low : high) = ranks;
    (too_low ? low_score : high_score) = middle;
  }
  return {high_score * std::log(2.0), std::move(high)};
}

// How far the score and each layer's threshold may lie from the guess.
struct Margins {
  double log_score = 0.0;
  std::vector<double> log_thresholds;
};

// In a group's own sample the layers' counts and sums differ from the whole's; the score moves
// until the counts add up again, and each layer's threshold with it.
Margins margins(const std::vector<Response>& responses) {
  double flow = 0.0;  // elements per unit of log score
  for (const Response& layer : responses) flow += layer.density / layer.steepness;
  Margins result;
  result.log_thresholds.resize(responses.size(), 0.0);
  for (std::size_t g = 0; g < groups; ++g) {
    double surplus = 0.0;
    for (const Response& layer : responses) {
      surplus += layer.count_error[g] + layer.density * layer.shift(g, 0.0);
    }
    const double log_score_error = flow > 0.0 ? -surplus / flow : 0.0;
    result.log_score += log_score_error * log_score_error;
    for (std::size_t i = 0; i < responses.size(); ++i) {
      const double shift = responses[i].shift(g, log_score_error);
      result.log_thresholds[i] += shift * shift;
    }
  }
  const auto margin = [](double squares) {
    const double reach =
        deviations * std::sqrt(squares / static_cast<double>(groups * (groups - 1)));
    return std::isfinite(reach) ? reach : std::numeric_limits<double>::infinity();
  };
  result.log_score = margin(result.log_score);
  for (double& squares : result.log_thresholds) squares = margin(squares);
  return result;
}

// What a layer has on either side of a key.
struct Split {
  std::int64_t below = 0;
  Sum sum_from;  // of the scaled squares from the key on
};

Split split_at(const Layer& layer, std::uint64_t key, double scale) {
  return with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    Split split;
    for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), {0, 0, layer.size},
                     [&](const Key* keys, std::int64_t length) {
                       cpu::classify(layer.dtype, keys, length, {key, key}, scale, nullptr,
                                     [&](const cpu::Classified& block, const Key*) {
                                       split.below += block.below;
                                       split.sum_from.add(block.above_sum);
                                     });
                     });
    return split;
  });
}

// Where a small layer has the magnitudes of a score, by all of its weights.
struct Threshold {
  double magnitude = 0.0;  // 0 as long as none is known
  double slack = 0.0;      // of its logarithm
  double steepness = 4.0;  // d log score / d log magnitude there
  double density = 0.0;    // elements per unit of log magnitude there
  double below = 0.0;      // elements

  // What was found where it was last looked, on logarithms.
  double last_at = 0.0;
  double last_log_score = std::numeric_limits<double>::quiet_NaN();
  std::int64_t last_below = 0;
};

// Looks for where a rising function is zero: as Newton's method says, but never beyond a point
// whose value had the other sign.
class RootSearch {
 public:
  // The next point to try after one with this value and slope.
  double after(double at, double value, double slope) {
    (value < 0.0 ? low_ : high_) = at;
    const double next = at - std::clamp(value / slope, -1.0, 1.0);
    if (next > low_ && next < high_) return next;
    if (std::isfinite(low_) && std::isfinite(high_)) return (low_ + high_) / 2.0;
    return value < 0.0 ? at + 0.5 : at - 0.5;
  }

 private:
  double low_ = -std::numeric_limits<double>::infinity();
  double high_ = std::numeric_limits<double>::infinity();
};

// Moves a threshold to the magnitudes of a score, on a scale of logarithms.
void find_threshold(const Layer& layer, double scale, double log_score, Threshold& threshold) {
  constexpr int most_steps = 12;
  if (threshold.magnitude == 0.0) {
    // No threshold is larger than the one whose square is that part of the sum of all squares.
    const double sum = split_at(layer, 1, scale).sum_from.value();
    threshold.magnitude = std::exp(log_score / 2.0) * std::sqrt(sum) / scale;
  }
  RootSearch search;
  double at = std::log(threshold.magnitude);
  for (int i = 0; i < most_steps; ++i) {
    const Split split = split_at(layer, nearest_key(layer.dtype, std::exp(at)), scale);
    // Infinite beyond the largest magnitude.
    const double here = 2.0 * (at + std::log(scale)) - std::log(split.sum_from.value());
    const double moved = at - threshold.last_at;
    const double slope = (here - threshold.last_log_score) / moved;
    const bool measured = std::isfinite(slope) && std::abs(moved) > 0x1p-12;
    if (measured) {
      threshold.steepness = std::max(slope, 2.0);
      threshold.density = static_cast<double>(split.below - threshold.last_below) / moved;
    }
    threshold.last_at = at;
    threshold.last_log_score = here;
    threshold.last_below = split.below;
    const double step = search.after(at, here - log_score, threshold.steepness) - at;
    at += step;
    threshold.below = static_cast<double>(split.below) + step * threshold.density;
    // What a step leaves, where its slope was measured: it bends the more the steeper it is and the
    // farther apart it was measured.
    const double bend = threshold.steepness * (std::abs(step) + std::abs(moved)) / 2.0;
    threshold.slack = std::abs(step) * (measured ? std::min(bend, 1.0) : 1.0);
    if (threshold.slack < 0x1p-8) break;
  }
  threshold.magnitude = std::exp(at);
}

// A guess at one call's brackets, in its steps.
class Guesser {
 public:
  Guesser(const std::vector<Layer>& layers, const std::vector<double>& scales, std::int64_t count,
          cpu::Team& team)
      : layers_(layers),
        scales_(scales),
        count_(count),
        team_(team),
        samples_(layers.size()),
        responses_(layers.size()),
        thresholds_(layers.size()) {}

  Guess guess() {
    std::int64_t total = 0;
    for (const Layer& layer : layers_) total += layer.size;
    std::int64_t drawn = 0;
    for (const Layer& layer : layers_) drawn += sample_size(layer, total);
    // Drawing and ordering an element takes as long as streaming over many.
    constexpr std::int64_t weights_per_draw = 16;
    for_each_layer(drawn * weights_per_draw,
                   [&](std::size_t i) { samples_[i] = Sample(layers_[i], total, scales_[i]); });
    middle_ = guess_score(samples_, count_);
    only_zeros_ = middle_.log_score < least_log_score;
    respond(drawn);
    if (find_thresholds()) respond(drawn);
    margins_ = margins(responses_);
    Guess guess;
    for (std::size_t i = 0; i < layers_.size(); ++i) guess.brackets.push_back(bracket(i));
    const double reach = margins_.log_score + score_slack_ + 0x1p-6;
    guess.scores.low = std::max(std::exp(middle_.log_score - reach), ScoreRange::least_score);
    guess.scores.high = std::exp(middle_.log_score + reach);
    return guess;
  }

 private:
  // Layers that stay in the cache from here to the survey, so that reading all of their weights a
  // few times costs little.
  static constexpr std::int64_t small_layer = tiny ? 12 : 1 << 14;

  // Below it only zeros score, and there is no threshold to look for.
  static constexpr double least_log_score = -600.0;

  bool is_small(std::size_t i) const {
    return layers_[i].size <= small_layer && !samples_[i].is_complete() && !only_zeros_;
  }

  void for_each_layer(std::int64_t weights, const std::function<void(std::size_t)>& body) {
    team_.for_each(static_cast<std::int64_t>(layers_.size()), weights,
                   [&](std::int64_t i, int) { body(static_cast<std::size_t>(i)); });
  }

  // How each layer's threshold answers to errors: a sample's, and none where all weights were read.
  void respond(std::int64_t drawn) {
    for_each_layer(drawn, [&](std::size_t i) {
      if (is_small(i)) {
        responses_[i].density = thresholds_[i].density;
        responses_[i].steepness = thresholds_[i].steepness;
      } else if (samples_[i].size() > 0) {
        responses_[i] = samples_[i].response(middle_.ranks[i]);
      }
    });
  }

  // Of the small layers, and with their true counts, which small samples are biased to miss, the
  // score at which the counts of all layers add up. False if there are none.
  bool find_thresholds() {
    std::int64_t small = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (!is_small(i)) continue;
      small += layers_[i].size;
      thresholds_[i].magnitude = samples_[i].magnitude(middle_.ranks[i]);
    }
    if (small == 0) return false;
    constexpr int most_rounds = 8;
    RootSearch search;
    for (int round = 0; round < most_rounds; ++round) {
      for_each_layer(small, [&](std::size_t i) {
        if (is_small(i)) find_threshold(layers_[i], scales_[i], middle_.log_score, thresholds_[i]);
      });
      double below = 0.0;
      double flow = 0.0;  // elements per unit of log score
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        const Threshold& at = thresholds_[i];
        const Response& response = responses_[i];
        below += is_small(i) ? at.below : samples_[i].elements(middle_.ranks[i]);
        flow += is_small(i) ? at.density / at.steepness : response.density / response.steepness;
      }
      const double surplus = below - static_cast<double>(count_);
      const double shift = search.after(middle_.log_score, surplus, flow) - middle_.log_score;
      middle_.log_score += shift;
      score_slack_ = std::abs(shift) / 2.0;  // what a small shift leaves
      if (!(std::abs(shift) > 0x1p-6) || middle_.log_score < least_log_score) {
        for (Threshold& at : thresholds_) at.magnitude *= std::exp(shift / at.steepness);
        break;
      }
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        if (is_small(i)) continue;
        middle_.ranks[i] = samples_[i].at_most(std::exp(middle_.log_score), 0, samples_[i].size());
      }
    }
    return true;
  }

  Bracket bracket(std::size_t i) const {
    const Layer& layer = layers_[i];
    if (!is_small(i)) return samples_[i].bracket(middle_.ranks[i], margins_.log_thresholds[i]);
    const Threshold& at = thresholds_[i];
    // Between two thresholds so close that few elements or none lie there the density is a rough
    // one; but hardly a layer is as thin as this at its threshold.
    const double density = std::max(at.density, static_cast<double>(layer.size) / 16.0);
    const double few_elements = 2.0 * static_cast<double>(least_ranks) / density;
    const double reach =
        (margins_.log_score + score_slack_) / at.steepness + at.slack + few_elements + 0x1p-9;
    const std::uint64_t end = not_finite_key(layer.dtype);
    const std::uint64_t low = nearest_key(layer.dtype, at.magnitude * std::exp(-reach));
    const std::uint64_t high = nearest_key(layer.dtype, at.magnitude * std::exp(reach)) + 1;
    return {std::clamp<std::uint64_t>(low, 1, end), std::clamp<std::uint64_t>(high, 1, end)};
  }

  const std::vector<Layer>& layers_;
  const std::vector<double>& scales_;
  const std::int64_t count_;
  cpu::Team& team_;
  std::vector<Sample> samples_;
  Middle middle_{};
  bool only_zeros_ = false;  // whether no more are to be pruned than are zero
  std::vector<Response> responses_;
  Margins margins_;
  std::vector<Threshold> thresholds_;  // of the small layers
  double score_slack_ = 0.0;           // of the logarithm of the score, beside the samples' errors
};

}  // namespace

Guess guess(const std::vector<Layer>& layers, const std::vector<double>& scales, std::int64_t count,
            cpu::Team& team) {
  return Guesser(layers, scales, count, team).guess();
}

}  // namespace lampfast
