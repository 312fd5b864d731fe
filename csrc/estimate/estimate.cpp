// Draw, solve, error bars, probe.
#include "estimate/estimate.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <unordered_map>
#include <utility>

#include "core/error_bounds.h"
#include "core/test_sizes.h"
#include "estimate/empirical_cdf.h"
#include "estimate/error_bars.h"
#include "estimate/solve.h"

namespace lampfast {
namespace {

// Half the width of an estimated interval, in standard deviations. If it is larger, every layer
// stores more candidates; if it is smaller, more layers are read again.
constexpr double deviations = test_sizes ? 0.5 : 4.0;

// A probe pays where an interval would hold more than this part of a layer, as a candidate costs
// about 25 times as much as counting an element.
constexpr double most_inside = 1.0 / 24.0;
// A probe also pays where the error is so large that it tells little of itself.
constexpr double most_reach = 0.5;
constexpr int most_probes = 3;

// Layers [begin, end) of which the elements with the least scores are pruned, `wanted` in all.
// Scores are given by their logarithms.
struct Problem {
  std::size_t begin;
  std::size_t end;
  double wanted;
  double score = std::numeric_limits<double>::quiet_NaN();  // of the last one that is pruned
  double least = 0.0;                                       // of what is not zero
};

// Estimates in steps: draw, solve, error bars, probe.
class Estimator {
 public:
  Estimator(Backends& backends, const SelectionSpec& spec)
      : backends_(backends),
        layers_(backends.layers()),
        ranking_(spec.ranking),
        cdfs_(layers_.size()),
        errors_(layers_.size()),
        intervals_(layers_.size()) {
    if (ranking_ == Ranking::magnitude) scores_ = ScoreInterval::of_magnitudes();
    if (ranking_ != Ranking::per_layer) {
      problems_.push_back({0, layers_.size(), static_cast<double>(spec.count())});
      return;
    }
    problems_.reserve(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      problems_.push_back({i, i + 1, static_cast<double>(spec.counts[i])});
    }
  }

  Estimate estimate() {
    draw();
    // Between ranks a probe would cost two exchanges, and save candidates and at most one read.
    const int most = backends_.is_sharded() ? 0 : most_probes;
    LayerIds unsure;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (cdfs_[i].is_known() && !cdfs_[i].is_whole()) unsure.push_back(i);
    }
    for (int probes = 0;; ++probes) {
      solve_problems();
      measure_errors(unsure);
      find_intervals();
      unsure = too_wide();
      if (unsure.empty() || probes == most) break;
      probe(unsure);
    }
    std::vector<bool> tracks = tracks_min_max();
    return {std::move(intervals_), std::move(tracks), scores_};
  }

 private:
  // Calls body(task) for `tasks` layers or problems, which take as long as reading so many weights
  // each.
  template <class Body>
  void for_each(std::size_t tasks, std::int64_t weights, Body&& body) {
    const auto count = static_cast<std::int64_t>(tasks);
    backends_.pool().for_each(count, count * weights, [&](std::int64_t task, int) {
      body(static_cast<std::size_t>(task));
    });
  }
  static constexpr std::int64_t weights_to_build_curve = 1 << 12;
  static constexpr std::int64_t weights_to_ask_curve = 1 << 10;

  void draw() {
    const std::vector<LogHistogram> histograms = backends_.draw(backends_.all());
    for_each(layers_.size(), weights_to_build_curve,
             [&](std::size_t i) { cdfs_[i] = EmpiricalCdf(layers_[i], ranking_, histograms[i]); });
  }

  // --- solve ---

  // There is one problem of all layers, each step of which works on all threads, or one for each
  // layer.
  template <class Body>
  void for_each_problem(Body&& body) {
    if (problems_.size() == 1) {
      body(problems_[0]);
    } else {
      for_each(problems_.size(), weights_to_ask_curve, [&](std::size_t p) { body(problems_[p]); });
    }
  }

  void solve_problems() {
    for_each_problem([&](Problem& problem) {
      put_zeros_below_all(problem);
      problem.score = solve_for(problem, problem.wanted, problem.score);
    });
  }

  void put_zeros_below_all(Problem& problem) {
    problem.least = std::numeric_limits<double>::infinity();
    for (std::size_t i = problem.begin; i < problem.end; ++i) {
      if (!cdfs_[i].is_known()) continue;
      problem.least = std::min(problem.least, cdfs_[i].least_log_score());
    }
    for (std::size_t i = problem.begin; i < problem.end; ++i) {
      cdfs_[i].put_zeros_below(problem.least);
    }
  }

  // The score at which the problem's layers have so many elements.
  double solve_for(const Problem& problem, double wanted, double start) {
    double high = -std::numeric_limits<double>::infinity();
    for (std::size_t i = problem.begin; i < problem.end; ++i) {
      if (cdfs_[i].is_known()) high = std::max(high, cdfs_[i].most_log_score());
    }
    const double low = problem.least - EmpiricalCdf::zeros_reach;
    if (!(low < high)) return 0.0;
    if (std::isnan(start)) start = guess(problem, wanted, low, high);
    return solve(low, high, start, wanted, [&](double score) { return count(problem, score); });
  }

  // About the same score, from a few of many layers: the others are then looked at two or three
  // times only. Not a number if there are not many.
  double guess(const Problem& problem, double wanted, double low, double high) const {
    constexpr std::size_t few = test_sizes ? 2 : 64;
    const std::size_t step = (problem.end - problem.begin) / few;
    if (step < 4) return std::numeric_limits<double>::quiet_NaN();
    double size = 0.0;
    double looked_at = 0.0;
    for (std::size_t i = problem.begin; i < problem.end; ++i) {
      size += static_cast<double>(layers_[i].size);
      if (i % step == 0) looked_at += static_cast<double>(layers_[i].size);
    }
    const auto count_few = [&](double score) {
      ScoreCount sum;
      for (std::size_t i = 0; i < problem.end; i += step) {
        const ScoreCount found = cdfs_[i].at(score);
        sum.count += found.count;
        sum.flow += found.flow;
      }
      return sum;
    };
    constexpr double none = std::numeric_limits<double>::quiet_NaN();
    return size > 0.0 ? solve(low, high, none, wanted / size * looked_at, count_few) : none;
  }

  ScoreCount count(const Problem& problem, double score) {
    constexpr std::size_t layers_at_a_time = test_sizes ? 2 : 512;
    const std::size_t size = problem.end - problem.begin;
    const std::size_t parts = (size + layers_at_a_time - 1) / layers_at_a_time;
    std::vector<ScoreCount> counts(parts);
    const auto count_part = [&](std::size_t part) {
      const std::size_t begin = problem.begin + part * layers_at_a_time;
      const std::size_t end = std::min(begin + layers_at_a_time, problem.end);
      for (std::size_t i = begin; i < end; ++i) {
        const ScoreCount found = cdfs_[i].at(score);
        counts[part].count += found.count;
        counts[part].flow += found.flow;
      }
    };
    if (parts == 1) {
      count_part(0);
      return counts[0];
    }
    constexpr std::int64_t weights_per_layer = 128;  // that are read in the same time
    backends_.pool().for_each(
        static_cast<std::int64_t>(parts), static_cast<std::int64_t>(size) * weights_per_layer,
        [&](std::int64_t part, int) { count_part(static_cast<std::size_t>(part)); });
    ScoreCount sum;
    for (const ScoreCount& part : counts) {
      sum.count += part.count;
      sum.flow += part.flow;
    }
    return sum;
  }

  const Problem& problem_of(std::size_t i) const {
    return problems_[problems_.size() == 1 ? 0 : i];
  }

  std::vector<TallyRequest> at_thresholds(const LayerIds& ids) const {
    std::vector<TallyRequest> requests;
    requests.reserve(ids.size());
    for (const std::size_t i : ids) {
      requests.push_back({cdfs_[i].edge_near(problem_of(i).score), 1.0 / cdfs_[i].unit()});
    }
    return requests;
  }

  // --- error bars ---

  void measure_errors(const LayerIds& ids) {
    const std::vector<TallyRequest> requests = at_thresholds(ids);
    const std::vector<GroupTallies> tallies = backends_.tally(ids, requests);
    tallied_.clear();
    for (std::size_t a = 0; a < ids.size(); ++a) {
      const std::size_t i = ids[a];
      tallied_[i] = {requests[a].key, tallies[a]};
      GroupTallies at_threshold = tallies[a];
      const auto probed = probed_.find(i);
      if (probed != probed_.end()) at_threshold.subtract(probed->second);
      const double sum = ranking_ == Ranking::lamp ? cdfs_[i].sum_from(requests[a].key) : 0.0;
      errors_[i].draw = DrawErrors(at_threshold, static_cast<double>(layers_[i].size), sum);
    }
  }

  void find_intervals() {
    for_each(layers_.size(), weights_to_ask_curve, [&](std::size_t i) {
      const double score = problem_of(i).score;
      constexpr double reach = 0x1p-4;  // within which the flow is measured
      const ScoreCount low = cdfs_[i].at(score - reach);
      const ScoreCount high = cdfs_[i].at(score + reach);
      errors_[i].flow = (high.count - low.count) / (2.0 * reach);
      errors_[i].unevenness = cdfs_[i].at(score).unevenness;
    });
    for_each_problem([&](const Problem& problem) { find_intervals(problem); });
  }

  void find_intervals(const Problem& problem) {
    const ErrorBars bars(errors_.data() + problem.begin, problem.end - problem.begin);
    // Counts are off by half an element, and sums by what bins do not tell.
    constexpr double slack = 0x1p-8;
    const double count_error =
        deviations * bars.count + static_cast<double>(problem.end - problem.begin) / 2.0;
    double low = problem.score;
    double high = problem.score;
    // Beyond this, and at zeros, the delta method, which follows a tangent, tells nothing.
    constexpr double most_linear = 0x1p-2;
    const bool is_linear =
        deviations * bars.log_score < most_linear && problem.score > problem.least;
    if (!is_linear) {
      low = solve_for(problem, problem.wanted - count_error, low);
      high = solve_for(problem, problem.wanted + count_error, high);
    }
    const auto find_one = [&](std::size_t i) {
      const DrawErrors& draw = errors_[i].draw;
      const double variance = draw.log_sum_variance();
      const double error = is_linear ? bars.of_layer(draw) : std::sqrt(variance);
      const double reach = deviations * error + variance + bars.bias + slack;
      errors_[i].reach = reach;
      intervals_[i] = cdfs_[i].interval(low - reach, high + reach);
    };
    if (problem.end - problem.begin == 1) {
      find_one(problem.begin);
      return;
    }
    for_each(layers_.size(), weights_to_ask_curve, find_one);
    const double reach = (is_linear ? deviations * bars.log_score : 0.0) + bars.bias + 4.0 * slack;
    const double least = ranking_ == Ranking::lamp ? error_bounds::least_score : 0.0;
    scores_.least = least;
    scores_.low = std::max(std::exp(low - reach), least);
    scores_.high = std::exp(high + reach);
  }

  // --- probe ---

  // The layers of which an interval holds so much that a probe pays.
  LayerIds too_wide() const {
    LayerIds ids;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (!cdfs_[i].is_known() || cdfs_[i].is_whole() || cdfs_[i].is_tied()) continue;
      const auto size = static_cast<double>(layers_[i].size);
      // No probe would tell apart what is inside the narrowest interval, such as ties.
      const double inside = cdfs_[i].count_inside(intervals_[i]) - narrowest(i);
      const bool is_wide = inside > most_inside * size;
      if (is_wide || errors_[i].reach > most_reach) ids.push_back(i);
    }
    return ids;
  }

  // Where bins should track their smallest and largest keys: where so many elements are in the
  // narrowest interval that many of them are probably equal; and where the interval begins at 0, as
  // its bins are octaves wide, but hold few elements. Ranks see for themselves which bins are
  // crowded.
  std::vector<bool> tracks_min_max() const {
    constexpr double many = 1.0 / 32.0;
    std::vector<bool> tracks(layers_.size());
    if (backends_.is_sharded()) return tracks;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      // The narrowest interval lies within this one.
      const double most = many * static_cast<double>(layers_[i].size);
      tracks[i] = intervals_[i].low <= 1 ||
                  (cdfs_[i].count_inside(intervals_[i]) > most && narrowest(i) > most);
    }
    return tracks;
  }

  // How many elements are in the interval that there would be if the score were known exactly.
  double narrowest(std::size_t i) const {
    const double score = problem_of(i).score;
    return cdfs_[i].count_inside(cdfs_[i].interval(score, score));
  }

  // Reads layers once at their estimated thresholds, which tells the count below and the sum above
  // there exactly, and moves their curves to it.
  void probe(const LayerIds& ids) {
    const std::vector<TallyRequest> at = at_thresholds(ids);
    const std::vector<Tally> found = backends_.probe(ids, at);
    tally_missing(ids, at);
    for (std::size_t a = 0; a < ids.size(); ++a) {
      const std::size_t i = ids[a];
      if (!std::isfinite(found[a].above)) continue;  // reporting it is left to the partition
      cdfs_[i].shift(found[a].below - cdfs_[i].count_below(at[a].key),
                     found[a].above - cdfs_[i].sum_from(at[a].key));
      probed_[i] = tallied_[i].at_key;
    }
  }

  // Of most layers the draws have just been tallied at the key that is probed, for the error there.
  void tally_missing(const LayerIds& ids, const std::vector<TallyRequest>& requests) {
    LayerIds missing;
    std::vector<TallyRequest> missing_requests;
    for (std::size_t a = 0; a < ids.size(); ++a) {
      const auto known = tallied_.find(ids[a]);
      if (known != tallied_.end() && known->second.key == requests[a].key) continue;
      missing.push_back(ids[a]);
      missing_requests.push_back(requests[a]);
    }
    if (missing.empty()) return;
    const std::vector<GroupTallies> found = backends_.tally(missing, missing_requests);
    for (std::size_t m = 0; m < missing.size(); ++m) {
      tallied_[missing[m]] = {missing_requests[m].key, found[m]};
    }
  }

  Backends& backends_;
  const std::vector<Layer>& layers_;
  const Ranking ranking_;
  std::vector<Problem> problems_;
  std::vector<EmpiricalCdf> cdfs_;
  std::vector<LayerErrors> errors_;
  std::vector<KeyInterval> intervals_;
  ScoreInterval scores_;
  struct DrawTallies {
    std::uint64_t key;
    GroupTallies at_key;
  };
  std::unordered_map<std::size_t, DrawTallies> tallied_;  // the last ones of the draws, by layer id
  std::unordered_map<std::size_t, GroupTallies> probed_;  // what the draws of a layer say where it
                                                          // was probed last, by layer id
};

}  // namespace

Estimate estimate(Backends& backends, const SelectionSpec& spec) {
  return Estimator(backends, spec).estimate();
}

}  // namespace lampfast
