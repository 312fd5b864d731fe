// Decides for every open layer what to read next, and in what interval.
#include "select/narrow.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

#include "core/key_format.h"
#include "core/test_sizes.h"
#include "select/likely.h"

namespace lampfast {
namespace {

// Plans the next reads.
class NextReads {
 public:
  NextReads(const Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
            Evidence& evidence)
      : backends_(backends),
        layers_(backends.layers()),
        spec_(spec),
        bounds_(bounds),
        evidence_(evidence) {}

  Reads candidates;
  Reads weights;
  // Layers of which all keys inside an interval are to be sorted: in one process those with few
  // candidates, for which there was no memory, and those that are still open in the interval of
  // their last read, although the smallest and largest keys of its bins are known, so that reading
  // it once more would tell nothing new; between ranks all that are open, once little is left.
  Reads sorted;

  // A layer whose interval has missed its threshold keeps the bounds wide for all layers, so such
  // layers are read first, by themselves.
  void plan(std::vector<OpenLayer> open) {
    std::vector<OpenLayer> missed;
    for (const OpenLayer& layer : open) {
      const ScoredInterval& likely = likely_interval(layer.id);
      if (is_missed(layer, likely)) {
        missed.push_back({layer.id, retry_interval(layer, likely), layer.count});
      }
    }
    if (missed.empty()) focus(open);
    for (const OpenLayer& layer : missed.empty() ? open : missed) add(layer);
  }

  // Between ranks it is exchanges that should be spared. Every layer is read in every turn, until
  // so few elements are left, for the layers of the call, that their keys can be gathered at once.
  void plan_shared(const std::vector<OpenLayer>& open) {
    std::int64_t total = 0;
    for (const OpenLayer& layer : open) total += needed_count(layer);
    const bool are_few = total <= most_exchanged_keys * static_cast<std::int64_t>(layers_.size());
    for (const OpenLayer& layer : open) {
      if (are_few || needed_count(layer) <= most_exchanged_keys) continue;
      const KeyInterval interval = shared_interval(layer);
      if (!is_known(layer.id, interval)) weights.add(layer.id, interval);
    }
    if (!weights.empty()) return;
    for (const OpenLayer& layer : open) sorted.add(layer.id, layer.needed);
  }

 private:
  KeyInterval shared_interval(const OpenLayer& layer) {
    if (bounds_.ranges[layer.id].is_empty()) return layer.needed;
    const ScoredInterval& likely = likely_interval(layer.id);
    if (is_missed(layer, likely)) return retry_interval(layer, likely);
    // A second part would tell less than all that the layer needs.
    if (evidence_.is_read_in_part[layer.id]) return layer.needed;
    const KeyInterval part =
        is_crowded(layer, likely)
            ? KeyInterval{std::max<std::uint64_t>(likely.first, 1), likely.last + 1}
            : scoring_part(layer);
    evidence_.is_read_in_part[layer.id] = !(part == layer.needed);
    return part;
  }

  // The part of what a layer needs in which keys can have the score that is sought: an element of
  // square q, behind which squares add up to `after`, scores at most q / after, and at least q /
  // (the sum from the first element of its interval on).
  KeyInterval scoring_part(const OpenLayer& layer) const {
    const Dtype dtype = layers_[layer.id].dtype;
    const RankBounds& rank_bounds = evidence_.rank_bounds[layer.id];
    const RankRange& range = bounds_.ranges[layer.id];
    const ScoredInterval* from = rank_bounds.at_rank(range.begin);
    const ScoredInterval* to = rank_bounds.at_rank(range.last());
    double low = bounds_.scores.low;
    double high = bounds_.scores.high;
    if (spec_.ranking != Ranking::magnitude) {
      const double scale = evidence_.scales[layer.id];
      low = std::sqrt(low * from->after) / scale;
      high = to->before == 0 ? std::numeric_limits<double>::infinity()
                             : std::sqrt(high * (to - 1)->after) / scale;
    }
    constexpr double slack = 0x1p-20;
    const std::uint64_t first = std::max(layer.needed.low, nearest_key(dtype, low * (1.0 - slack)));
    const std::uint64_t last = nearest_key(dtype, high * (1.0 + slack));
    const std::uint64_t end =
        last < to->last ? std::min(last + 1, layer.needed.high) : layer.needed.high;
    return first < end ? KeyInterval{first, end} : layer.needed;
  }

  std::int64_t needed_count(const OpenLayer& layer) const {
    return evidence_.rank_bounds[layer.id].count_inside(layer.needed);
  }

  // A bin that holds one key is still 2^b keys wide. A read of the same interval again asks for the
  // bins' smallest and largest keys, so that we can tell.
  bool is_known(std::size_t id, const KeyInterval& interval) const {
    return evidence_.sides[id].interval == interval && evidence_.tracks_min_max[id];
  }

  // Leaves, of the layers of which it is not known at which key their pruned elements probably end,
  // the few candidates among which they do. The other layers wait: what these tell may settle them.
  void focus(std::vector<OpenLayer>& open) const {
    constexpr double most_ratio = 2.0;
    const ScoreInterval& scores = bounds_.scores;
    if (spec_.ranking != Ranking::per_layer && scores.high > most_ratio * scores.low) return;
    constexpr std::int64_t few = test_sizes ? 2 : 16;
    const LikelyThreshold likely(evidence_.rank_bounds, spec_, bounds_);
    std::vector<OpenLayer> focused;
    bool has_parts = false;
    for (const OpenLayer& layer : open) {
      if (likely.interval(layer.id).is_one_key() && layer.count > few) continue;
      const KeyInterval part = likely_candidates(layer, likely);
      has_parts = has_parts || !(part == layer.needed);
      focused.push_back({layer.id, part, layer.count});
    }
    if (has_parts) open = std::move(focused);
  }

  KeyInterval likely_candidates(const OpenLayer& layer, const LikelyThreshold& likely) const {
    constexpr int most_misses = 1;
    const KeyInterval& stored = evidence_.stored[layer.id];
    const std::optional<KeyInterval> keys = likely.keys(layer.id, layer.count);
    if (!keys || evidence_.misses[layer.id] > most_misses) return layer.needed;
    const KeyInterval part{std::max(keys->low, stored.low), std::min(keys->high, stored.high)};
    return part.low < part.high ? part : layer.needed;
  }

  void add(const OpenLayer& layer) {
    const bool is_stored = evidence_.stored[layer.id].contains(layer.needed);
    if (is_known(layer.id, layer.needed)) {
      sorted.add(layer.id, layer.needed);
    } else if (is_stored) {
      candidates.add(layer.id, layer.needed);
    } else if (has_few(layer)) {
      // All of them, as the first kept element may be among those that are not open.
      sorted.add(layer.id, evidence_.sides[layer.id].interval);
    } else {
      weights.add(layer.id, layer.needed);
    }
  }

  // How many elements the interval of a layer's last read holds.
  std::int64_t inside_last_read(std::size_t id) const {
    return layers_[id].size - evidence_.sides[id].beside();
  }

  bool has_few(const OpenLayer& layer) const {
    const KeyInterval& read = evidence_.sides[layer.id].interval;
    return read.contains(layer.needed) &&
           inside_last_read(layer.id) <= backends_.most_sorted(layer.id);
  }

  // The part of a layer in which its pruned elements probably end.
  const ScoredInterval& likely_interval(std::size_t id) const {
    const RankBounds& rank_bounds = evidence_.rank_bounds[id];
    if (spec_.ranking != Ranking::per_layer) return *rank_bounds.reaching(bounds_.likely_score);
    return *rank_bounds.at_rank(std::min(bounds_.ranges[id].begin, layers_[id].size - 1));
  }

  // Whether the elements that are probably next to the threshold lie outside the interval that was
  // read. What the layer needs certainly holds the threshold: if that lies inside, all is well.
  bool is_missed(const OpenLayer& layer, const ScoredInterval& likely) const {
    const KeyInterval& read = evidence_.sides[layer.id].interval;
    const bool is_outside = likely.first >= read.high || likely.last < read.low;
    return is_outside && !likely.is_one_key() && !read.contains(layer.needed);
  }

  // Whether the elements next to the threshold crowd in a part of the interval that was read: until
  // it is known how they lie there, the bounds are so wide that the layer seems to need more than
  // that interval.
  bool is_crowded(const OpenLayer& layer, const ScoredInterval& likely) const {
    constexpr std::uint64_t narrow = 16;
    const std::uint64_t width = layer.needed.high - layer.needed.low;
    return !likely.is_one_key() && (likely.last - likely.first) < width / narrow &&
           likely.count > needed_count(layer) / 4;
  }

  // Where to read a layer whose interval has missed: twice where the threshold probably lies, then
  // where it certainly lies.
  KeyInterval retry_interval(const OpenLayer& layer, const ScoredInterval& likely) {
    const bool is_estimate =
        evidence_.misses[layer.id]++ < 2 && spec_.ranking != Ranking::per_layer;
    return is_estimate ? likely_part(layer, likely) : layer.needed;
  }

  // Let `end` be the end of the missed interval next to the threshold t. The log score grows at
  // least twice as fast as log |w|, so |log t - log end| <= log(ratio of the scores) / 2. The
  // likely score is only an estimate, so log(ratio) is allowed. If magnitudes rank the elements,
  // |log t - log end| = log(ratio), and twice that is allowed.
  KeyInterval likely_part(const OpenLayer& layer, const ScoredInterval& likely) const {
    const Dtype dtype = layers_[layer.id].dtype;
    const Sides& sides = evidence_.sides[layer.id];
    const bool is_above = likely.first >= sides.interval.high;
    const std::uint64_t end = is_above ? sides.interval.high : sides.interval.low;
    const double sum_from = is_above ? sides.above_sum.value() : likely.after;
    const double at = magnitude_of(dtype, end);
    const bool by_magnitude = spec_.ranking == Ranking::magnitude;
    const double score =
        by_magnitude ? at : scaled_square_of(dtype, end, evidence_.scales[layer.id]) / sum_from;
    constexpr double least_ratio = 1.0 + 0x1p-7;
    constexpr double most_reach = 0x1p16;
    const double likely_score = bounds_.likely_score;
    const double ratio = std::max(is_above ? likely_score / score : score / likely_score, 1.0);
    const double reach = std::min((by_magnitude ? ratio * ratio : ratio) * least_ratio, most_reach);
    const KeyInterval part{
        std::max(is_above ? end : nearest_key(dtype, at / reach), layer.needed.low),
        std::min(is_above ? nearest_key(dtype, at * reach) + 1 : end, layer.needed.high)};
    return part.low < part.high ? part : layer.needed;
  }

  const Backends& backends_;
  const std::vector<Layer>& layers_;
  const SelectionSpec& spec_;
  const ThresholdBounds& bounds_;
  Evidence& evidence_;
};

// Which bins are to track their smallest and largest keys: reading the same interval once more only
// tells more if they do. Ranks have more bins, which tell more, where they need not tell that as
// well.
void track_min_max(const Reads& reads, bool is_sharded, Evidence& evidence) {
  for (std::size_t r = 0; r < reads.ids.size(); ++r) {
    const std::size_t id = reads.ids[r];
    const bool is_same = evidence.sides[id].interval == reads.intervals[r];
    evidence.tracks_min_max[id] = is_same || (!is_sharded && evidence.tracks_min_max[id]);
  }
}

// In an interval whose keys have all been sorted there is nothing left to find out: every key of
// the open range has an interval of its own, whether or not other intervals were merged
// (RankBounds::merge_outside). Where only a part of what a layer needs was sorted, the rest may
// still be open.
void check_not_sorted(const std::vector<OpenLayer>& open, const Evidence& evidence) {
  for (const OpenLayer& layer : open) {
    const KeyInterval& read = evidence.sides[layer.id].interval;
    if (evidence.is_sorted[layer.id] && read.contains(layer.needed)) throw WeightsChanged();
  }
}

// The interval that a layer needs certainly holds its open range or the first kept element, as its
// ends follow from counts. Once it has been read, it must be seen to hold them; the intervals that
// the layer needs next lie within it.
void check_ranges(const std::vector<Layer>& layers, const std::vector<OpenLayer>& open,
                  const std::vector<RankRange>& ranges, const Evidence& evidence) {
  for (const OpenLayer& layer : open) {
    const Sides& sides = evidence.sides[layer.id];
    if (!(sides.interval == layer.needed)) continue;
    const RankRange& range = ranges[layer.id];
    // No interval holds zeros, so these may be part of the range.
    const bool begins_below = layer.needed.low > 1 && range.begin < sides.below;
    const bool ends_above = range.last() >= layers[layer.id].size - sides.above;
    if (begins_below || ends_above) throw WeightsChanged();
  }
}

}  // namespace

std::vector<OpenLayer> find_open(const std::vector<Layer>& layers, const Evidence& evidence,
                                 const std::vector<RankRange>& ranges) {
  std::vector<OpenLayer> open;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const RankRange& range = ranges[i];
    if (range.begin == layers[i].size) continue;  // all elements are pruned, or there are none
    const RankBounds& rank_bounds = evidence.rank_bounds[i];
    const ScoredInterval* from = rank_bounds.at_rank(range.begin);
    const ScoredInterval* to = rank_bounds.at_rank(range.last());
    // The first element of an interval is found in the end, if it is the first kept one
    // (first_kept.h).
    if (range.is_empty() && from->before == range.begin) continue;
    const auto is_one_key = [](const ScoredInterval& interval) { return interval.is_one_key(); };
    if (std::all_of(from, to + 1, is_one_key)) continue;
    // The first kept element, if it is close enough to be found on the way.
    if (range.end < layers[i].size) {
      const ScoredInterval* kept = rank_bounds.at_rank(range.end);
      constexpr std::uint64_t close = 16;
      constexpr std::int64_t few = test_sizes ? 2 : 16;
      const bool is_close = kept->last - from->first <= close * (to->last - from->first + 1);
      const bool is_stored = evidence.stored[i].contains({kept->first, kept->last + 1});
      if (is_close || (is_stored && kept->count <= few)) to = kept;
    }
    const KeyInterval needed{std::max<std::uint64_t>(from->first, 1), to->last + 1};
    open.push_back({i, needed, to->end() - from->before});
  }
  return open;
}

Evidence narrow(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence) {
  check_not_sorted(open, evidence);
  NextReads next(backends, spec, bounds, evidence);
  backends.is_sharded() ? next.plan_shared(open) : next.plan(open);
  Reader reader(backends, spec, bounds.scores, evidence);
  // Stored candidates are read first: what they tell may spare a read of the weights, of which an
  // interval needs all that lies below it if its threshold may be just beyond its end.
  const Reads& reads = next.candidates.empty() ? next.weights : next.candidates;
  if (!reads.empty()) {
    track_min_max(reads, backends.is_sharded(), evidence);
    reader.read(reads, masks);
  } else {
    // They are few, or their scores too close or too small for the bounds to tell apart.
    reader.sort(next.sorted, masks);
  }
  check_ranges(backends.layers(), open, bounds.ranges, evidence);
  return evidence;
}

Evidence sort_open(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                   const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence) {
  check_not_sorted(open, evidence);
  Reads reads;
  for (const OpenLayer& layer : open) reads.add(layer.id, layer.needed);
  Reader(backends, spec, bounds.scores, evidence).sort(reads, masks);
  check_ranges(backends.layers(), open, bounds.ranges, evidence);
  return evidence;
}

}  // namespace lampfast
