// Samples, looks closer where that pays, and turns what it knows into intervals.
#include "cpu/sampling/sampled_estimate.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <mutex>
#include <utility>

#include "core/key_format.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/sampling/blocks.h"
#include "cpu/sampling/margins.h"
#include "cpu/sampling/probe.h"
#include "cpu/sampling/sample.h"
#include "cpu/sampling/threshold_search.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {
namespace {

struct Middle {
  double log_score;                 // at which the pruned elements end
  std::vector<std::int64_t> ranks;  // of the samples, up to that score
};

// The score at which the samples, scaled up, have `count` elements.
Middle estimate_score(const std::vector<Sample>& samples, std::int64_t count) {
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
  const double close_enough = total / std::sqrt(drawn) / 4.0;
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

// One call's estimate, in its steps.
class SampledEstimate {
 public:
  SampledEstimate(const std::vector<Layer>& layers, const std::vector<double>& scales,
                  std::int64_t count, ThreadPool& pool)
      : layers_(layers),
        scales_(scales),
        count_(count),
        pool_(pool),
        samples_(layers.size()),
        responses_(layers.size()),
        looks_(layers.size()),
        thresholds_(layers.size()) {}

  Estimate estimate() {
    draw_samples();
    middle_ = estimate_score(samples_, count_);
    if (middle_.log_score >= least_log_score) look_closer();
    const Margins margins(responses_);
    Estimate estimate;
    for (std::size_t i = 0; i < layers_.size(); ++i)
      estimate.intervals.push_back(interval(i, margins));
    const double reach = margins.score + score_slack_ + 0x1p-6;
    estimate.scores.low = std::max(std::exp(middle_.log_score - reach), error_bounds::least_score);
    estimate.scores.high = std::exp(middle_.log_score + reach);
    return estimate;
  }

 private:
  // Below it only zeros score, and there is no threshold to look for.
  static constexpr double least_log_score = -600.0;

  // Layers that stay in the cache from here to the partition, so that reading all of their weights
  // a few times costs little.
  static constexpr std::int64_t small_layer = test_sizes ? 12 : 1 << 14;

  // What more is read of a layer than its sample, and how much of it.
  struct Look {
    enum class At { nothing, a_part, everything } at = At::nothing;
    Blocks blocks{0, 0, 1};
    std::int64_t drawn = 0;
  };

  void for_each_layer(std::int64_t weights, const std::function<void(std::size_t)>& body) {
    pool_.for_each(static_cast<std::int64_t>(layers_.size()), weights,
                   [&](std::int64_t i, int) { body(static_cast<std::size_t>(i)); });
  }

  void draw_samples() {
    std::int64_t total = 0;
    for (const Layer& layer : layers_) total += layer.size;
    std::int64_t drawn = 0;
    for (const Layer& layer : layers_) drawn += sample_size(layer, total);
    // Drawing and ordering an element takes as long as streaming over many.
    constexpr std::int64_t weights_per_draw = 16;
    work_of_samples_ = drawn * weights_per_draw;
    for_each_layer(work_of_samples_,
                   [&](std::size_t i) { samples_[i] = Sample(layers_[i], total, scales_[i]); });
  }

  // Moves the estimate to where it would be by more elements than were worth sorting.
  void look_closer() {
    for_each_layer(work_of_samples_, [&](std::size_t i) {
      if (samples_[i].size() > 0) responses_[i] = samples_[i].response(middle_.ranks[i]);
    });
    begin_looks();
    constexpr int most_rounds = 6;
    for (int round = 0; round < most_rounds; ++round) {
      const std::vector<double> parts = parts_worth_reading();
      std::vector<std::size_t> wanted;
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        if (is_enlarged(i, parts[i]) || is_rough(i)) wanted.push_back(i);
      }
      if (wanted.empty()) break;
      look(wanted);
      find_score();
    }
  }

  // Decides which layers to read more of.
  void begin_looks() {
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const Sample& sample = samples_[i];
      const std::int64_t rank = middle_.ranks[i];
      const double magnitude = sample.magnitude(rank);
      if (sample.is_complete()) continue;
      if (layers_[i].size <= small_layer) {
        looks_[i].at = Look::At::everything;
      } else if (sample.is_smooth(rank)) {
        looks_[i].at = Look::At::a_part;
      }
      thresholds_[i] =
          Threshold(std::log(magnitude), responses_[i].density, responses_[i].steepness);
    }
  }

  // The errors, and with them the candidates that they leave, fall with the root of what is drawn.
  // These parts of the layers make the cost of both together least, but leave no more candidates
  // than may be kept.
  std::vector<double> parts_worth_reading() const {
    const Margins margins(responses_);
    std::vector<double> parts(layers_.size(), 1.0);
    double total = 0.0;
    double candidates = 0.0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      const auto size = static_cast<double>(layers_[i].size);
      total += size;
      const auto drawn = static_cast<double>(std::max(samples_[i].size(), looks_[i].drawn));
      const double part = drawn / std::max(size, 1.0);
      const double inside = 2.0 * margins.thresholds[i] * responses_[i].density / size;
      const double wanted = std::cbrt(std::pow(draws_per_candidate / 2.0 * inside, 2.0) * part);
      if (!(wanted < 1.0)) continue;  // it is not a number where nothing is known
      parts[i] = wanted;
      candidates += size * inside * std::sqrt(part / std::max(wanted, part));
    }
    const double excess = std::max(candidates / (most_candidates * total), 1.0);
    for (double& part : parts) part = std::min(part * excess * excess, 1.0);
    return parts;
  }

  // Whether so large a part is worth reading that it pays to look again, or for the first time.
  bool is_enlarged(std::size_t i, double part) {
    Look& look = looks_[i];
    const std::int64_t size = layers_[i].size;
    const auto wanted = static_cast<std::int64_t>(part * static_cast<double>(size));
    if (look.at == Look::At::nothing || look.drawn == size) return false;
    if (look.at == Look::At::everything) {
      look.drawn = size;
    } else {
      if (look.drawn > 0 && wanted < 2 * look.drawn) return false;
      const auto largest = static_cast<std::int64_t>(static_cast<double>(size) * largest_part);
      // The first look may be far from the threshold, and so tells less.
      const std::int64_t most = look.drawn == 0 ? largest : size;
      look.drawn = std::clamp(wanted, std::min(2 * samples_[i].size(), most), most);
      if (look.drawn > largest) look.drawn = size;
      look.blocks = Blocks(size, look.drawn, longest_probe_block);
      // What other blocks told lies on another curve, which has about the same slope.
      const Threshold& other = thresholds_[i];
      thresholds_[i] = Threshold(log_magnitude(i), other.density(), other.steepness());
    }
    return true;
  }

  // Reads layers at what is thought to be their thresholds.
  void look(const LayerIds& ids) {
    std::vector<std::size_t> parts;
    std::vector<std::size_t> wholes;
    for (const std::size_t i : ids) {
      (looks_[i].at == Look::At::a_part ? parts : wholes).push_back(i);
    }
    look_at_parts(parts);
    std::int64_t weights = 0;
    for (const std::size_t i : wholes) weights += layers_[i].size;
    constexpr std::int64_t reads = 4;
    pool_.for_each(static_cast<std::int64_t>(wholes.size()), weights * reads,
                   [&](std::int64_t w, int) {
                     const std::size_t i = wholes[static_cast<std::size_t>(w)];
                     find_threshold(i);
                     responses_[i] = {};  // all of a layer has no errors
                   });
    for (const std::size_t i : ids) {
      responses_[i].density = thresholds_[i].density();
      responses_[i].steepness = thresholds_[i].steepness();
    }
  }

  void look_at_parts(const LayerIds& ids) {
    struct Task {
      std::size_t c;  // position among the ids
      std::int64_t first;
      std::int64_t last;
    };
    std::vector<Task> tasks;
    std::int64_t drawn = 0;
    std::vector<std::uint64_t> keys;
    for (std::size_t c = 0; c < ids.size(); ++c) {
      const Look& look = looks_[ids[c]];
      drawn += look.drawn;
      for (std::int64_t b = 0; b < look.blocks.count(); b += blocks_per_task) {
        tasks.push_back({c, b, std::min(b + blocks_per_task, look.blocks.count())});
      }
      keys.push_back(key_at(ids[c], log_magnitude(ids[c])));
    }
    std::vector<Split> splits(ids.size());
    std::mutex mutex;
    constexpr std::int64_t weights_per_draw = 4;
    pool_.for_each(static_cast<std::int64_t>(tasks.size()), drawn * weights_per_draw,
                   [&](std::int64_t t, int) {
                     const auto [c, first, last] = tasks[static_cast<std::size_t>(t)];
                     const std::size_t i = ids[c];
                     const Split split =
                         probe(layers_[i], looks_[i].blocks, first, last, keys[c], scales_[i]);
                     const std::lock_guard<std::mutex> lock(mutex);
                     splits[c].add(split);
                   });
    for (std::size_t c = 0; c < ids.size(); ++c) {
      const std::size_t i = ids[c];
      learn(i, keys[c], splits[c]);
      splits[c].errors(static_cast<double>(layers_[i].size), responses_[i]);
    }
  }

  std::uint64_t key_at(std::size_t i, double log_magnitude) const {
    return std::max<std::uint64_t>(nearest_key(layers_[i].dtype, std::exp(log_magnitude)), 1);
  }

  double log_magnitude(std::size_t i) const {
    return thresholds_[i].log_magnitude(middle_.log_score);
  }

  void learn(std::size_t i, std::uint64_t key, const Split& split) {
    const double at = std::log(magnitude_of(layers_[i].dtype, key));
    const double weight = static_cast<double>(layers_[i].size) / Split::total(split.drawn);
    const double sum = Split::total(split.sum_from) * weight;
    const double log_score = 2.0 * (at + std::log(scales_[i])) - std::log(sum);
    if (!std::isnan(log_score)) {
      thresholds_[i].learn(at, Split::total(split.below) * weight, log_score);
    }
  }

  // Looks at all of a small layer until its threshold is known well enough.
  void find_threshold(std::size_t i) {
    Threshold& threshold = thresholds_[i];
    const Chunk all{i, i, 0, layers_[i].size};
    if (!std::isfinite(log_magnitude(i))) {
      // No threshold is larger than the one whose square is that part of the sum of all squares.
      const double sum = Split::total(probe_all(layers_[i], all, 1, scales_[i]).sum_from);
      const double at = (middle_.log_score + std::log(sum)) / 2.0 - std::log(scales_[i]);
      threshold = Threshold(at, threshold.density(), threshold.steepness());
    }
    constexpr int most_steps = 12;
    RootSearch search;
    double at = log_magnitude(i);
    for (int step = 0; step < most_steps; ++step) {
      const std::uint64_t key = key_at(i, at);
      learn(i, key, probe_all(layers_[i], all, key, scales_[i]));
      if (threshold.slack(middle_.log_score) < least_slack) break;
      at = search.after(at, -(log_magnitude(i) - at), log_magnitude(i));
    }
  }

  // Finds the score at which the counts of all layers add up, as far as they are known.
  void find_score() {
    constexpr double rounding = 0.5;  // of a layer's count, which is no straight line
    RootSearch search;
    constexpr int most_steps = 12;
    for (int step = 0; step < most_steps; ++step) {
      double below = 0.0;
      double flow = 0.0;  // elements per unit of log score
      double open = 0.0;  // elements, by what the thresholds may be off
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        flow += responses_[i].density / responses_[i].steepness;
        if (looks_[i].at == Look::At::nothing) {
          below += samples_[i].elements(middle_.ranks[i]);
        } else {
          below += thresholds_[i].below(middle_.log_score);
          open += thresholds_[i].slack(middle_.log_score) * thresholds_[i].density() + rounding;
        }
      }
      score_slack_ = flow > 0.0 ? open / flow : 0.0;
      const double surplus = below - static_cast<double>(count_);
      const double next = middle_.log_score - std::clamp(surplus / flow, -1.0, 1.0);
      const double shift = search.after(middle_.log_score, surplus, next) - middle_.log_score;
      if (!(std::abs(shift) > 0x1p-12) || middle_.log_score < least_log_score) break;
      middle_.log_score += shift;
      for (std::size_t i = 0; i < layers_.size(); ++i) {
        if (looks_[i].at != Look::At::nothing) continue;
        middle_.ranks[i] = samples_[i].at_most(std::exp(middle_.log_score), 0, samples_[i].size());
      }
    }
  }

  // Whether another look at a layer would save more than it costs.
  bool is_rough(std::size_t i) const {
    const double slack = thresholds_[i].slack(middle_.log_score);
    if (looks_[i].at == Look::At::everything) return slack > 4.0 * least_slack;
    const double candidates = 2.0 * slack * thresholds_[i].density();
    const double cost = std::min(static_cast<double>(looks_[i].drawn),
                                 static_cast<double>(layers_[i].size) * largest_part);
    return looks_[i].at == Look::At::a_part && candidates * draws_per_candidate > cost;
  }

  KeyInterval interval(std::size_t i, const Margins& margins) const {
    const Layer& layer = layers_[i];
    const Look& look = looks_[i];
    if (look.at == Look::At::nothing) {
      return samples_[i].interval(middle_.ranks[i], margins.thresholds[i]);
    }
    const Threshold& threshold = thresholds_[i];
    // Between two magnitudes so close that few elements or none lie there the density is a rough
    // one; but hardly a layer is as thin as this at its threshold.
    const auto size = static_cast<double>(layer.size);
    const double density = std::max(threshold.density(), size / 16.0);
    const double weight = size / static_cast<double>(look.drawn);
    const double few_elements = 2.0 * static_cast<double>(least_ranks) * weight / density;
    const double reach = margins.thresholds[i] + threshold.slack(middle_.log_score) +
                         score_slack_ / threshold.steepness() + few_elements +
                         (look.at == Look::At::everything ? 0x1p-9 : 0.0);
    const double at = log_magnitude(i);
    const std::uint64_t end = not_finite_key(layer.dtype);
    const std::uint64_t low = nearest_key(layer.dtype, std::exp(at - reach));
    const std::uint64_t high = nearest_key(layer.dtype, std::exp(at + reach)) + 1;
    return {std::clamp<std::uint64_t>(low, 1, end), std::clamp<std::uint64_t>(high, 1, end)};
  }

  static constexpr std::int64_t longest_probe_block = test_sizes ? 2 : 16;
  static constexpr std::int64_t blocks_per_task = test_sizes ? 4 : 1 << 10;
  // Blocks that make up a larger part take longer to read than all of the layer in a row.
  static constexpr double largest_part = 1.0 / 12.0;
  static constexpr double draws_per_candidate = 3.0;  // that take as long
  static constexpr double most_candidates = 0.025;    // of all elements
  static constexpr double least_slack = 0x1p-8;

  const std::vector<Layer>& layers_;
  const std::vector<double>& scales_;
  const std::int64_t count_;
  ThreadPool& pool_;
  std::int64_t work_of_samples_ = 0;
  std::vector<Sample> samples_;
  Middle middle_{};
  std::vector<Response> responses_;
  std::vector<Look> looks_;
  std::vector<Threshold> thresholds_;  // of the layers that are looked at
  double score_slack_ = 0.0;  // of the logarithm of the score, beside the errors of what was drawn
};

}  // namespace

Estimate estimate_by_sampling(const std::vector<Layer>& layers, const std::vector<double>& scales,
                              std::int64_t count, ThreadPool& pool) {
  return SampledEstimate(layers, scales, count, pool).estimate();
}

}  // namespace lampfast::cpu
