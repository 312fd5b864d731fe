#include "select.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>

#include "cpu/parallel.h"
#include "guess.h"
#include "locate.h"
#include "magnitude.h"
#include "profile.h"
#include "resolve.h"
#include "survey.h"

namespace lampfast {
namespace {

// Candidates of a layer that are sorted rather than narrowed further: fewer at first, when all of
// them must be kept as steps of the profile, for the sake of memory.
constexpr std::int64_t few_at_first = 24;
constexpr std::int64_t few = 128;

// Memory for candidates: 3% of the weights' bytes, and what small models need.
constexpr std::int64_t least_budget = 1 << 19;

std::int64_t candidate_budget(const std::vector<Layer>& layers) {
  std::int64_t bytes = 0;
  for (const Layer& layer : layers) {
    bytes += layer.size * item_size(layer.dtype);
  }
  return least_budget + bytes / 100 * 3;
}

std::vector<Run> sorted_runs(const Layer& layer, const Survey& survey) {
  std::vector<std::uint64_t> keys;
  with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    for (const Segment& segment : survey.candidates) {
      const auto* begin = reinterpret_cast<const Key*>(segment.keys);
      keys.insert(keys.end(), begin, begin + segment.count);
    }
  });
  std::sort(keys.begin(), keys.end());
  std::vector<Run> runs;
  for (const std::uint64_t key : keys) {
    if (runs.empty() || runs.back().key != key) runs.push_back({key, 0});
    ++runs.back().count;
  }
  return runs;
}

class Selection {
 public:
  Selection(const std::vector<Layer>& layers, std::int64_t count, int threads)
      : layers_(layers),
        count_(count),
        threads_(threads),
        budget_(candidate_budget(layers)),
        surveys_(layers.size()),
        profiles_(layers.size()),
        windows_(layers.size()) {}

  std::vector<Cut> solve() {
    begin();
    while (!settled()) {
    }
    std::int64_t open = count_;
    for (const Window& window : windows_) open -= window.begin;
    const auto chosen = resolve(layers_, profiles_, windows_, open, threads_);
    std::vector<Cut> cuts;
    cuts.reserve(layers_.size());
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      cuts.push_back(cut_after(i, windows_[i].begin + chosen[i]));
    }
    return cuts;
  }

 private:
  void begin() {
    const std::vector<double> scale = scales(layers_, threads_);
    const std::vector<Bracket> brackets = guess(layers_, scale, count_, threads_);
    std::vector<std::size_t> all(layers_.size());
    std::iota(all.begin(), all.end(), std::size_t{0});
    for (const std::size_t i : all) surveys_[i].scale = scale[i];
    for (const std::size_t i : all) windows_[i] = {0, layers_[i].size};
    read_weights(all, brackets, budget_, few_at_first);
  }

  // Bounds the cut, and reads again what the bounds leave open. True when nothing is.
  bool settled() {
    locate(profiles_, count_, range_, windows_);
    std::vector<Bracket> needed(layers_.size());
    std::vector<std::size_t> candidates;
    std::vector<std::size_t> weights;
    std::vector<std::size_t> stuck;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      if (layers_[i].size == 0 || !is_open(i, needed[i])) continue;
      const Bracket known = surveys_[i].bracket;
      const bool within = needed[i].low >= known.low && needed[i].high <= known.high;
      const bool narrower = needed[i].high - needed[i].low < known.high - known.low;
      auto& list = within && !narrower            ? stuck
                   : within && surveys_[i].stored ? candidates
                                                  : weights;
      list.push_back(i);
    }
    if (candidates.empty() && weights.empty()) {
      if (stuck.empty()) return true;
      // Scores too close or too small for the bounds: sort them, whatever memory it takes.
      constexpr std::int64_t everything = std::numeric_limits<std::int64_t>::max();
      read_weights(stuck, needed, everything, everything);
      return false;
    }
    if (!candidates.empty()) {
      survey_candidates(layers_, candidates, needed, surveys_, threads_);
      digest(candidates, few);
    }
    if (!weights.empty()) read_weights(weights, needed, budget_, few);
    return false;
  }

  // True when not all elements of the layer's window are told apart; `needed` then brackets them,
  // and the first element that is kept, which names the cut.
  bool is_open(std::size_t i, Bracket& needed) const {
    const Profile& profile = profiles_[i];
    const Window& window = windows_[i];
    const std::int64_t last = std::min(window.end, layers_[i].size - 1);
    const Step* from = profile.step_at(std::min(window.begin, last));
    const Step* to = profile.step_at(last);
    needed = {std::max<std::uint64_t>(from->first, 1), to->last + 1};
    return !std::all_of(from, to + 1, [](const Step& step) { return step.is_run(); });
  }

  void read_weights(const std::vector<std::size_t>& chosen, const std::vector<Bracket>& brackets,
                    std::int64_t budget, std::int64_t sortable) {
    for (const std::size_t i : chosen) {
      surveys_[i].bracket = brackets[i];
      surveys_[i].stored = false;
    }
    const std::int64_t used = repack();
    stores_.push_back(std::make_unique<CandidateStore>(budget - used));
    survey_weights(layers_, chosen, surveys_, *stores_.back(), threads_);
    digest(chosen, sortable);
  }

  // Moves the candidates that are still of use together and frees the rest; the bytes in use.
  std::int64_t repack() {
    auto packed = std::make_unique<CandidateStore>(std::numeric_limits<std::int64_t>::max());
    CandidateWriter writer(*packed);
    std::int64_t bytes = 0;
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      std::vector<Segment> segments;
      if (surveys_[i].stored) {
        with_format(layers_[i].dtype, [&](auto format) {
          using Key = typename decltype(format)::Storage;
          for (const Segment& segment : surveys_[i].candidates) {
            writer.append(reinterpret_cast<const Key*>(segment.keys), segment.count, segments);
            bytes += segment.count * std::int64_t{sizeof(Key)};
          }
        });
      }
      surveys_[i].candidates = std::move(segments);
    }
    stores_.clear();
    stores_.push_back(std::move(packed));
    return bytes;
  }

  // Turns surveys into profiles, candidates into runs where they are few enough.
  void digest(const std::vector<std::size_t>& chosen, std::int64_t sortable) {
    cpu::parallel_for(threads_, static_cast<std::int64_t>(chosen.size()), [&](std::int64_t c, int) {
      const std::size_t i = chosen[static_cast<std::size_t>(c)];
      Survey& survey = surveys_[i];
      std::vector<Run> runs;
      if (survey.stored && survey.inside() <= sortable) {
        runs = sorted_runs(layers_[i], survey);
        survey.candidates.clear();
        survey.stored = false;
      }
      profiles_[i] = Profile(layers_[i].dtype, survey, runs, range_);
      survey.slots = {};
    });
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

  const std::vector<Layer>& layers_;
  const std::int64_t count_;
  const int threads_;
  const std::int64_t budget_;
  std::vector<std::unique_ptr<CandidateStore>> stores_;
  std::vector<Survey> surveys_;
  std::vector<Profile> profiles_;
  std::vector<Window> windows_;
  ScoreRange range_;
};

}  // namespace

std::vector<Cut> select(const std::vector<Layer>& layers, std::int64_t count, int threads) {
  const cpu::DefaultFloatEnvironment environment;
  return Selection(layers, count, threads).solve();
}

}  // namespace lampfast
