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

namespace lampfast {
namespace {

constexpr double deviations = 4.0;  // half a bracket, in standard deviations

// Up to this size a layer stays in the cache between the guess and the survey.
constexpr std::int64_t small_layer = 1 << 14;

struct Guess {
  double log2_score;                // at which the pruned elements end
  std::vector<std::int64_t> ranks;  // of the samples, up to that score
};

// The score at which the samples, scaled up, have `count` elements.
Guess guess_score(const std::vector<Sample>& samples, std::int64_t count) {
  std::vector<std::int64_t> low(samples.size(), 0);
  std::vector<std::int64_t> high;
  for (const Sample& sample : samples) high.push_back(sample.size());
  double low_score = -2000.0;  // as a power of two
  double high_score = 1.0;
  std::vector<std::int64_t> ranks(samples.size());
  for (int step = 0; step < 44; ++step) {
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
  return {high_score, std::move(high)};
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

// Narrows the bracket of a small layer, by all of its weights, to the magnitudes that score within
// the range of scores that was guessed.
Bracket refine(const Layer& layer, const Bracket& bracket, double scale, double low_score,
               double high_score) {
  return with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    using Key = typename Format::Storage;
    std::vector<Key> inside;
    Sum above;
    for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), {0, 0, layer.size},
                     [&](const Key* keys, std::int64_t length) {
                       cpu::classify(layer.dtype, keys, length, bracket, scale,
                                     [&](const cpu::Classified& block, const Key* found) {
                                       above.add(block.above_sum);
                                       inside.insert(inside.end(), found, found + block.inside);
                                     });
                     });
    std::sort(inside.begin(), inside.end());
    Bracket result = bracket;
    double sum = above.value();
    for (std::size_t i = inside.size(); i-- > 0;) {
      const double square = scaled_square<Format>(inside[i], scale);
      sum += square;
      if (square > high_score * sum) result.high = std::uint64_t{inside[i]} + 1;
      if (square < low_score * sum) {
        result.low = inside[i];
        break;
      }
    }
    return result;
  });
}

}  // namespace

std::vector<Bracket> guess(const std::vector<Layer>& layers, const std::vector<double>& scales,
                           std::int64_t count, int threads) {
  const auto for_each_layer = [&](const std::function<void(std::size_t)>& body) {
    cpu::parallel_for(threads, static_cast<std::int64_t>(layers.size()),
                      [&](std::int64_t i, int) { body(static_cast<std::size_t>(i)); });
  };
  std::vector<Sample> samples(layers.size());
  for_each_layer([&](std::size_t i) { samples[i] = Sample(layers[i], scales[i]); });
  const Guess guessed = guess_score(samples, count);
  std::vector<Response> responses(layers.size());
  for_each_layer([&](std::size_t i) {
    if (samples[i].size() > 0) responses[i] = samples[i].response(guessed.ranks[i]);
  });
  const Margins margin = margins(responses);
  const double log2_margin = margin.log_score / std::log(2.0);
  std::vector<Bracket> brackets(layers.size());
  for_each_layer([&](std::size_t i) {
    brackets[i] = samples[i].bracket(guessed.ranks[i], margin.log_thresholds[i]);
    if (layers[i].size <= small_layer) {
      brackets[i] =
          refine(layers[i], brackets[i], scales[i], std::exp2(guessed.log2_score - log2_margin),
                 std::exp2(guessed.log2_score + log2_margin));
    }
  });
  return brackets;
}

}  // namespace lampfast
