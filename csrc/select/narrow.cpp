// Decides for every open layer what to read next, and in what interval.
#include "select/narrow.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "core/key_format.h"

namespace lampfast {
namespace {

// Plans the next reads.
class NextReads {
 public:
  NextReads(const Backends& backends, Ranking ranking, const ThresholdBounds& bounds,
            Evidence& evidence)
      : layers_(backends.layers()),
        most_sorted_(most_sorted(backends)),
        is_sharded_(backends.is_sharded()),
        ranking_(ranking),
        bounds_(bounds),
        evidence_(evidence) {}

  Reads candidates;
  Reads weights;
  // Layers of which all keys inside an interval are to be sorted: those with few candidates, for
  // which there was no memory; and those that are still open in the interval of their last read,
  // although the smallest and largest keys of its bins are known, so that reading it once more
  // would tell nothing new.
  Reads sorted;
  LayerIds tracked;  // of which the bins' smallest keys are wanted, in ascending order

  // A layer whose interval has missed its threshold keeps the bounds wide for all layers, so such
  // layers are read first, by themselves.
  void plan(std::vector<OpenLayer> open) {
    const auto is_settled = [&](const OpenLayer& layer) {
      return bounds_.ranges[layer.id].is_empty();
    };
    if (is_sharded_ && std::all_of(open.begin(), open.end(), is_settled)) find_first_kept(open);
    std::vector<OpenLayer> missed;
    for (OpenLayer& layer : open) {
      if (is_sharded_ && is_settled(layer)) continue;
      const ScoredInterval& likely = likely_interval(layer.id);
      if (is_missed(layer, likely)) {
        missed.push_back({layer.id, retry_interval(layer, likely)});
      } else if (is_sharded_ && is_crowded(layer, likely)) {
        ++evidence_.crowded[layer.id];
        layer.needed = {std::max<std::uint64_t>(likely.first, 1), likely.last + 1};
      }
    }
    for (const OpenLayer& layer : missed.empty() ? open : missed) add(layer);
  }

 private:
  // Where a layer's first kept element is the smallest one of an interval, a read that tracks the
  // smallest keys finds its key, and the next one reads nothing else.
  void find_first_kept(std::vector<OpenLayer>& open) {
    for (OpenLayer& layer : open) {
      const std::int64_t rank = bounds_.ranges[layer.id].begin;
      if (evidence_.rank_bounds[layer.id].at_rank(rank)->before != rank) continue;
      const bool is_known = evidence_.tracks_min_max[layer.id] &&
                            evidence_.sides[layer.id].interval.contains(layer.needed);
      if (is_known) layer.needed.high = layer.needed.low + 1;
      tracked.push_back(layer.id);
    }
  }

  void add(const OpenLayer& layer) {
    // A bin that holds one key is still 2^b keys wide. A read of the same interval again asks for
    // the bins' smallest and largest keys, so that we can tell.
    const bool is_same = evidence_.sides[layer.id].interval == layer.needed;
    const bool is_unresolved = is_same && evidence_.tracks_min_max[layer.id];
    const bool is_stored = evidence_.stored[layer.id].contains(layer.needed);
    if (is_unresolved) {
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
    return read.contains(layer.needed) && inside_last_read(layer.id) <= most_sorted_;
  }

  // The part of a layer in which its pruned elements probably end.
  const ScoredInterval& likely_interval(std::size_t id) const {
    const RankBounds& rank_bounds = evidence_.rank_bounds[id];
    if (ranking_ != Ranking::per_layer) return *rank_bounds.reaching(bounds_.likely_score);
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
    constexpr int most_crowded = 4;  // reads of a layer
    const KeyInterval& read = evidence_.sides[layer.id].interval;
    return !read.contains(layer.needed) && !likely.is_one_key() &&
           likely.count > inside_last_read(layer.id) / 4 &&
           evidence_.crowded[layer.id] < most_crowded;
  }

  // Where to read a layer whose interval has missed: twice where the threshold probably lies, then
  // where it certainly lies.
  KeyInterval retry_interval(const OpenLayer& layer, const ScoredInterval& likely) {
    const bool is_estimate = evidence_.misses[layer.id]++ < 2 && ranking_ != Ranking::per_layer;
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
    const bool by_magnitude = ranking_ == Ranking::magnitude;
    const double score =
        by_magnitude ? at : scaled_square_of(dtype, end, evidence_.scales[layer.id]) / sum_from;
    constexpr double least_ratio = 1.0 + 0x1p-7;
    const double likely_score = bounds_.likely_score;
    const double ratio = std::max(is_above ? likely_score / score : score / likely_score, 1.0);
    const double reach = (by_magnitude ? ratio * ratio : ratio) * least_ratio;
    const KeyInterval part{
        std::max(is_above ? end : nearest_key(dtype, at / reach), layer.needed.low),
        std::min(is_above ? nearest_key(dtype, at * reach) + 1 : end, layer.needed.high)};
    return part.low < part.high ? part : layer.needed;
  }

  const std::vector<Layer>& layers_;
  const std::int64_t most_sorted_;
  const bool is_sharded_;
  Ranking ranking_;
  const ThresholdBounds& bounds_;
  Evidence& evidence_;
};

// Which bins are to track their smallest and largest keys: reading the same interval once more only
// tells more if they do. Ranks have more bins, which tell more, where they need not tell that as
// well.
void track_min_max(const Reads& reads, const LayerIds& wanted, bool is_sharded,
                   Evidence& evidence) {
  for (std::size_t r = 0; r < reads.ids.size(); ++r) {
    const std::size_t id = reads.ids[r];
    const bool is_same = evidence.sides[id].interval == reads.intervals[r];
    const bool is_wanted = std::binary_search(wanted.begin(), wanted.end(), id);
    evidence.tracks_min_max[id] =
        is_same || is_wanted || (!is_sharded && evidence.tracks_min_max[id]);
  }
}

// In an interval whose keys have all been sorted there is nothing left to find out: every key of
// the open range has an interval of its own, whether or not other intervals were merged
// (RankBounds::drop_irrelevant). Only the first kept element, once no other is open, may still have
// to be found beyond it.
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

std::vector<OpenLayer> find_open(const std::vector<Layer>& layers,
                                 const std::vector<RankBounds>& rank_bounds,
                                 const std::vector<RankRange>& ranges) {
  std::vector<OpenLayer> open;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const RankRange& range = ranges[i];
    if (range.begin == layers[i].size) continue;  // all elements are pruned, or there are none
    const ScoredInterval* from = rank_bounds[i].at_rank(range.begin);
    const ScoredInterval* to = rank_bounds[i].at_rank(range.last());
    // The first kept element, if it is close enough to be found on the way.
    if (range.end < layers[i].size) {
      const ScoredInterval* kept = rank_bounds[i].at_rank(range.end);
      constexpr std::uint64_t close = 16;
      if (kept->last - from->first <= close * (to->last - from->first + 1)) to = kept;
    }
    const auto is_one_key = [](const ScoredInterval& interval) { return interval.is_one_key(); };
    if (std::all_of(from, to + 1, is_one_key)) continue;
    open.push_back({i, {std::max<std::uint64_t>(from->first, 1), to->last + 1}});
  }
  return open;
}

Evidence narrow(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence) {
  check_not_sorted(open, evidence);
  NextReads next(backends, spec.ranking, bounds, evidence);
  next.plan(open);
  Reader reader(backends, spec, bounds.scores, evidence);
  // Stored candidates are read first: what they tell may spare a read of the weights, of which an
  // interval needs all that lies below it if its threshold may be just beyond its end. Between
  // ranks, an exchange is what should be spared.
  if (backends.is_sharded()) next.weights.add(next.candidates);
  const Reads& reads =
      next.candidates.empty() || backends.is_sharded() ? next.weights : next.candidates;
  if (!reads.empty()) {
    track_min_max(reads, next.tracked, backends.is_sharded(), evidence);
    reader.read(reads, StoreLimit::budget, masks);
  } else {
    // They are few, or their scores too close or too small for the bounds to tell apart.
    reader.read(next.sorted, StoreLimit::none, masks);
  }
  check_ranges(backends.layers(), open, bounds.ranges, evidence);
  return evidence;
}

Evidence sort_open(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                   const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence) {
  check_not_sorted(open, evidence);
  Reads reads;
  for (const OpenLayer& layer : open) reads.add(layer.id, layer.needed);
  Reader(backends, spec, bounds.scores, evidence).read(reads, StoreLimit::none, masks);
  check_ranges(backends.layers(), open, bounds.ranges, evidence);
  return evidence;
}

}  // namespace lampfast
