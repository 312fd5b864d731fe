#include "select.h"

#include <algorithm>
#include <iterator>
#include <limits>
#include <numeric>
#include <stdexcept>

#include "guess.h"
#include "locate.h"
#include "magnitude.h"
#include "profile.h"
#include "resolve.h"
#include "sketch.h"
#include "survey.h"
#include "tiny.h"

namespace lampfast {
namespace {

// As many candidates of a layer are sorted rather than narrowed further.
constexpr std::int64_t few = tiny ? 4 : 256;

std::vector<Run> sorted_runs(std::vector<std::uint64_t> keys) {
  std::sort(keys.begin(), keys.end());
  std::vector<Run> runs;
  runs.reserve(keys.size());
  for (const std::uint64_t key : keys) {
    if (runs.empty() || runs.back().key != key) runs.push_back({key, 0});
    ++runs.back().count;
  }
  return runs;
}

void check(const std::vector<Layer>& layers, const Goal& goal) {
  std::vector<std::int64_t> sizes;
  for (const Layer& layer : layers) sizes.push_back(layer.size);
  if (goal.ranking != Ranking::each_apart) {
    sizes = {std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})};
  }
  if (goal.counts.size() != sizes.size()) {
    throw std::invalid_argument("a goal has one count, or one for each layer");
  }
  for (std::size_t i = 0; i < sizes.size(); ++i) {
    if (goal.counts[i] < 0 || goal.counts[i] > sizes[i]) {
      throw std::invalid_argument("a goal's count is from 0 to the number of elements");
    }
  }
}

class Selection {
 public:
  Selection(Places& places, const Goal& goal, Stages* stages)
      : places_(places),
        layers_(places.job().layers),
        goal_(goal),
        count_(goal.count()),
        stages_(stages),
        surveys_(layers_.size()),
        profiles_(layers_.size()),
        windows_(layers_.size()),
        misses_(layers_.size(), 0) {}

  Selected solve() {
    begin();
    while (!settled()) {
    }
    const StageTimer timer(stages_, &Stages::select);
    std::int64_t open = count_;
    for (const Window& window : windows_) open -= window.begin;
    const auto chosen = resolve(places_, goal_.ranking, profiles_, windows_, open);
    Selected result;
    result.cuts.reserve(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      result.cuts.push_back(cut_after(i, windows_[i].begin + chosen[i]));
    }
    result.surveys = std::move(surveys_);
    return result;
  }

 private:
  void begin() {
    const Chosen& all = places_.all();
    Chosen wide;
    std::copy_if(all.begin(), all.end(), std::back_inserter(wide),
                 [&](std::size_t i) { return layers_[i].dtype == Dtype::float64; });
    std::vector<double> scales(layers_.size(), 1.0);
    places_.for_each(wide,
                     [&](Place& place, const Chosen& there) { place.find_scales(there, scales); });
    const Guess guessed = guess_brackets(scales);
    for (const std::size_t i : all) surveys_[i].scale = scales[i];
    for (const std::size_t i : all) {
      const bool is_known = goal_.ranking == Ranking::each_apart;
      windows_[i] =
          is_known ? Window{goal_.counts[i], goal_.counts[i]} : Window{0, layers_[i].size};
    }
    if (goal_.ranking == Ranking::magnitude) range_ = ScoreRange::of_magnitudes();
    read_weights(all, guessed.brackets, true, few, guessed.scores);
  }

  Guess guess_brackets(const std::vector<double>& scales) {
    const StageTimer timer(stages_, &Stages::guess);
    if (places_.is_only_host() && goal_.ranking == Ranking::lamp) {
      return guess(layers_, scales, count_, places_.team());
    }
    std::vector<Sketch> sketches(layers_.size());
    places_.for_each(places_.all(),
                     [&](Place& place, const Chosen& there) { place.start_sketches(there); });
    places_.for_each(places_.all(), [&](Place& place, const Chosen& there) {
      place.finish_sketches(there, sketches);
    });
    return guess_from(layers_, scales, sketches, goal_, places_.team());
  }

  // Bounds the cut, and reads again what the bounds leave open. True when nothing is.
  bool settled() {
    const double likely_score = bound_cut();
    std::vector<Bracket> needed(layers_.size());
    Chosen open;
    Chosen missed;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].size == 0 || !is_open(i, needed[i])) continue;
      open.push_back(i);
      const Step& likely = likely_step(i, likely_score);
      if (!is_missed(i, likely)) continue;
      missed.push_back(i);
      // A guess again; after another miss it is what surely holds the threshold.
      const bool is_guess = misses_[i]++ < 2 && goal_.ranking != Ranking::each_apart;
      if (is_guess) needed[i] = likely_part(i, likely, likely_score, needed[i]);
    }
    if (open.empty()) return true;
    // As long as a layer's bracket has missed it keeps the bounds wide for all, so it comes first.
    if (!missed.empty()) open = std::move(missed);

    Chosen candidates;
    Chosen weights;
    Chosen stuck;
    for (const std::size_t i : open) {
      const Survey& survey = surveys_[i];
      const bool same =
          contains(survey.sides.bracket, needed[i]) && contains(needed[i], survey.sides.bracket);
      const bool stored = survey.stored && contains(survey.read_sides.bracket, needed[i]);
      // Heavy ties may be alone in slots that, by their width, could hold other keys as well.
      const bool is_stuck = same && survey.with_ends;
      if (same) surveys_[i].with_ends = true;
      (is_stuck ? stuck : stored ? candidates : weights).push_back(i);
    }
    if (candidates.empty() && weights.empty()) {
      // Scores too close or too small for the bounds: sort them, whatever memory it takes.
      constexpr std::int64_t everything = std::numeric_limits<std::int64_t>::max();
      read_weights(stuck, needed, false, everything, range_);
      return false;
    }
    if (!candidates.empty()) {
      const StageTimer timer(stages_, &Stages::select);
      places_.for_each(candidates, [&](Place& place, const Chosen& there) {
        place.survey_candidates(there, needed, surveys_);
      });
      digest(candidates, few, range_);
    }
    if (!weights.empty()) read_weights(weights, needed, true, few, range_);
    return false;
  }

  // Narrows the windows; the score at which the pruned elements probably end.
  double bound_cut() {
    if (goal_.ranking == Ranking::each_apart) return 0.0;  // they are known
    const StageTimer timer(stages_, &Stages::select);
    return locate(profiles_, count_, range_, windows_);
  }

  // The layer's step in which its pruned elements probably end.
  const Step& likely_step(std::size_t i, double likely_score) const {
    if (goal_.ranking != Ranking::each_apart) return *profiles_[i].step_reaching(likely_score);
    return *profiles_[i].step_at(std::min(windows_[i].begin, layers_[i].size - 1));
  }

  static bool contains(const Bracket& outer, const Bracket& inner) {
    return inner.low >= outer.low && inner.high <= outer.high;
  }

  // Whether a step with the elements that likely are next to the cut lies outside the bracket.
  bool is_missed(std::size_t i, const Step& likely) const {
    const Bracket& bracket = surveys_[i].sides.bracket;
    return !likely.is_run() && (likely.first >= bracket.high || likely.last < bracket.low);
  }

  // What of a missed layer's elements probably holds its threshold. A score rises at least with the
  // square of the magnitude, so the end of the old bracket, and how its score differs from the
  // likely one, bound the distance; twice that, as the likely score is a guess. So is the likely
  // magnitude, where that is what ranks.
  Bracket likely_part(std::size_t i, const Step& likely, double likely_score,
                      const Bracket& needed) const {
    const Dtype dtype = layers_[i].dtype;
    const Survey& survey = surveys_[i];
    const auto [low, high] = survey.sides.bracket;
    const bool is_above = likely.first >= high;
    const std::uint64_t end = is_above ? high : low;
    const double sum_from = is_above ? survey.sides.above_sum.value() : likely.after;
    const double at = magnitude_of(dtype, end);
    const bool by_magnitude = goal_.ranking == Ranking::magnitude;
    const double score = by_magnitude ? at : scaled_square_of(dtype, end, survey.scale) / sum_from;
    constexpr double least_ratio = 1.0 + 0x1p-7;
    const double ratio = std::max(is_above ? likely_score / score : score / likely_score, 1.0);
    const double reach = (by_magnitude ? ratio * ratio : ratio) * least_ratio;
    const Bracket part{std::max(is_above ? end : nearest_key(dtype, at / reach), needed.low),
                       std::min(is_above ? nearest_key(dtype, at * reach) + 1 : end, needed.high)};
    return part.low < part.high ? part : needed;
  }

  // True when not all elements of the layer's window are told apart; `needed` then brackets them,
  // and the first element that is kept, which names the cut.
  bool is_open(std::size_t i, Bracket& needed) const {
    const Profile& profile = profiles_[i];
    const Window& window = windows_[i];
    if (window.begin == layers_[i].size) return false;  // all go
    const std::int64_t last = std::min(window.end, layers_[i].size - 1);
    const Step* from = profile.step_at(std::min(window.begin, last));
    const Step* to = profile.step_at(last);
    needed = {std::max<std::uint64_t>(from->first, 1), to->last + 1};
    return !std::all_of(from, to + 1, [](const Step& step) { return step.is_run(); });
  }

  void read_weights(const Chosen& chosen, const std::vector<Bracket>& brackets, bool limited,
                    std::int64_t sortable, const ScoreRange& scores) {
    const StageTimer timer(stages_, &Stages::survey);
    for (const std::size_t i : chosen) surveys_[i].sides.bracket = brackets[i];
    places_.for_each(chosen, [&](Place& place, const Chosen& there) {
      place.start_survey(there, surveys_, limited);
    });
    places_.for_each(
        chosen, [&](Place& place, const Chosen& there) { place.finish_survey(there, surveys_); });
    digest(chosen, sortable, scores);
  }

  // Turns surveys into profiles, candidates into runs where they are few enough.
  void digest(const Chosen& chosen, std::int64_t sortable, const ScoreRange& scores) {
    const auto is_sorted = [&](std::size_t i) {
      return surveys_[i].stored && surveys_[i].inside() <= sortable;
    };
    Chosen sorted;
    std::copy_if(chosen.begin(), chosen.end(), std::back_inserter(sorted), is_sorted);
    places_.for_each(sorted, [&](Place& place, const Chosen& there) {
      place.fetch_candidates(there, surveys_);
    });
    std::int64_t candidates = 0;
    for (const std::size_t i : chosen) {
      for (const Segment& segment : surveys_[i].candidates) candidates += segment.count;
    }
    const auto make_profile = [&](std::int64_t c, int) {
      const std::size_t i = chosen[static_cast<std::size_t>(c)];
      Survey& survey = surveys_[i];
      std::vector<Run> runs;
      if (is_sorted(i)) runs = sorted_runs(places_.of(i).candidate_keys(i, survey));
      profiles_[i] = Profile(layers_[i].dtype, goal_.ranking, survey, runs, scores);
      survey.slots = {};
    };
    places_.team().for_each(static_cast<std::int64_t>(chosen.size()), candidates, make_profile);
  }

  Cut cut_after(std::size_t i, std::int64_t pruned) const {
    const Dtype dtype = layers_[i].dtype;
    Cut cut{not_finite_key(dtype), 0, pruned, 0.0};
    if (pruned < layers_[i].size) {
      const Step* kept = profiles_[i].step_at(pruned);
      cut.key = kept->first;
      cut.ties = pruned - kept->before;
    }
    cut.threshold = magnitude_of(dtype, cut.key);
    return cut;
  }

  Places& places_;
  const std::vector<Layer>& layers_;
  const Goal& goal_;
  const std::int64_t count_;
  Stages* stages_;
  std::vector<Survey> surveys_;
  std::vector<Profile> profiles_;
  std::vector<Window> windows_;
  std::vector<int> misses_;  // of the layers' brackets
  ScoreRange range_;
};

}  // namespace

Selected select(Places& places, const Goal& goal, Stages* stages) {
  check(places.job().layers, goal);
  return Selection(places, goal, stages).solve();
}

}  // namespace lampfast
