// Turns what reads find into rank bounds: from bins while candidates are many, from sorted keys
// once they are few.
#include "select/evidence.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/key_format.h"
#include "core/not_finite.h"

namespace lampfast {
namespace {

std::vector<KeyCount> count_keys(std::vector<std::uint64_t>&& keys) {
  std::sort(keys.begin(), keys.end());
  std::vector<KeyCount> counts;
  counts.reserve(keys.size());
  for (const std::uint64_t key : keys) {
    if (counts.empty() || counts.back().key != key) counts.push_back({key, 0});
    ++counts.back().count;
  }
  return counts;
}

// Of all layers in their estimated intervals, within the keys of finite magnitudes but 0, which is
// below every interval.
Reads first_reads(const std::vector<Layer>& layers, const Estimate& estimate) {
  Reads reads;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const std::uint64_t end = not_finite_key(layers[i].dtype);
    const std::uint64_t low = std::clamp<std::uint64_t>(estimate.intervals[i].low, 1, end);
    reads.add(i, {low, std::clamp(estimate.intervals[i].high, low, end)});
  }
  return reads;
}

}  // namespace

Evidence::Evidence(std::vector<double> layer_scales)
    : scales(std::move(layer_scales)),
      rank_bounds(scales.size()),
      sides(scales.size()),
      stored(scales.size(), KeyInterval{0, 0}),
      tracks_min_max(scales.size(), false),
      misses(scales.size(), 0),
      is_read_in_part(scales.size(), false),
      is_sorted(scales.size(), false) {}

void Reader::read(const Reads& reads, StoreLimit limit, const MaskSink& masks) {
  const std::vector<PartitionRequest> asked = requests(reads, limit);
  const std::vector<PartitionResult> results = backends_.partition(reads.ids, asked, masks, limit);
  std::vector<const Partition*> found;
  found.reserve(results.size());
  for (std::size_t r = 0; r < results.size(); ++r) {
    found.push_back(&results[r].found);
    if (asked[r].of_candidates) continue;
    evidence_.stored[reads.ids[r]] = results[r].is_stored ? reads.intervals[r] : KeyInterval{0, 0};
    evidence_.is_sorted[reads.ids[r]] = limit == StoreLimit::none;
  }
  learn(reads.ids, found, limit);
}

void Reader::sort(const Reads& reads, const MaskSink& masks) {
  if (backends_.is_sharded()) {
    gather(reads, masks);
  } else {
    read(reads, StoreLimit::none, masks);
  }
}

void Reader::gather(const Reads& reads, const MaskSink& masks) {
  const std::vector<PartitionRequest> asked = requests(reads, StoreLimit::budget);
  std::vector<std::int64_t> counts;
  for (std::size_t r = 0; r < reads.ids.size(); ++r) {
    counts.push_back(evidence_.rank_bounds[reads.ids[r]].count_inside(reads.intervals[r]));
  }
  std::vector<KeysInside> found = backends_.keys_inside(reads.ids, asked, counts, masks);
  for (std::size_t r = 0; r < reads.ids.size(); ++r) {
    const std::size_t id = reads.ids[r];
    check_sides(id, found[r].sides, static_cast<std::int64_t>(found[r].keys.size()));
    evidence_.sides[id] = found[r].sides;
    evidence_.is_sorted[id] = true;
    if (!asked[r].of_candidates) evidence_.stored[id] = reads.intervals[r];
    learn_from_keys(id, std::move(found[r].keys));
  }
}

void Reader::check_sides(std::size_t id, const Sides& sides, std::int64_t inside) const {
  if (!std::isfinite(sides.above_sum.value())) throw NotFinite();
  // Ranks are positions in a layer's order, so none may be missing.
  if (sides.beside() + inside != backends_.layers()[id].size) throw WeightsChanged();
}

std::vector<PartitionRequest> Reader::requests(const Reads& reads, StoreLimit limit) const {
  std::vector<PartitionRequest> requests;
  requests.reserve(reads.ids.size());
  for (std::size_t r = 0; r < reads.ids.size(); ++r) {
    const std::size_t id = reads.ids[r];
    const bool is_stored = evidence_.stored[id].contains(reads.intervals[r]);
    requests.push_back({reads.intervals[r], evidence_.scales[id], evidence_.tracks_min_max[id],
                        is_stored && limit == StoreLimit::budget});
  }
  return requests;
}

void Reader::learn(const LayerIds& ids, const std::vector<const Partition*>& found,
                   StoreLimit limit) {
  // Ranks gather the last keys of all layers at once.
  const auto is_few = [&](std::size_t id, std::int64_t inside) {
    return limit == StoreLimit::none ||
           (!backends_.is_sharded() && inside <= backends_.most_sorted(id));
  };
  LayerIds sorted;
  std::vector<KeyRequest> keys;
  LayerIds binned;
  std::vector<const Partition*> bins;
  for (std::size_t r = 0; r < ids.size(); ++r) {
    const std::size_t id = ids[r];
    const KeyInterval& interval = found[r]->sides.interval;
    const std::int64_t inside = found[r]->inside();
    check_sides(id, found[r]->sides, inside);
    evidence_.sides[id] = found[r]->sides;
    // Bins of one key each say all that sorted keys would.
    const bool is_by_key = found[r]->bin_bits == 0;
    if (!is_by_key && evidence_.stored[id].contains(interval) && is_few(id, inside)) {
      sorted.push_back(id);
      keys.push_back({interval, inside});
    } else {
      binned.push_back(id);
      bins.push_back(found[r]);
    }
  }
  collect(sorted, keys);
  learn_from_bins(binned, bins);
}

// Where each layer's count is given, only the interval of the first kept element matters.
void Reader::learn_bounds(std::size_t id, RankBounds&& bounds) {
  bounds.add_known(evidence_.rank_bounds[id]);
  bounds.merge_outside(scores_);
  if (spec_.ranking == Ranking::per_layer) bounds.separate_only(spec_.counts[id]);
  evidence_.rank_bounds[id] = std::move(bounds);
}

void Reader::collect(const LayerIds& ids, const std::vector<KeyRequest>& requests) {
  backends_.collect(ids, requests, [&](std::size_t id, std::vector<std::uint64_t>&& keys) {
    // Where candidates cannot be stored, their keys come from the weights, which are read again.
    check_sides(id, evidence_.sides[id], static_cast<std::int64_t>(keys.size()));
    learn_from_keys(id, std::move(keys));
  });
}

void Reader::learn_from_keys(std::size_t id, std::vector<std::uint64_t>&& keys) {
  learn_bounds(id, {backends_.layers()[id].dtype, spec_.ranking, evidence_.scales[id],
                    evidence_.sides[id], count_keys(std::move(keys))});
}

void Reader::learn_from_bins(const LayerIds& ids, const std::vector<const Partition*>& found) {
  constexpr std::int64_t weights_per_bin = 32;  // that are read in the same time
  std::int64_t bins = 0;
  for (const Partition* partition : found)
    bins += static_cast<std::int64_t>(partition->bins.size());
  backends_.pool().for_each(
      static_cast<std::int64_t>(ids.size()), bins * weights_per_bin, [&](std::int64_t task, int) {
        const auto r = static_cast<std::size_t>(task);
        const std::size_t id = ids[r];
        learn_bounds(
            id, {backends_.layers()[id].dtype, spec_.ranking, evidence_.scales[id], *found[r]});
      });
}

Evidence partition(Backends& backends, const SelectionSpec& spec, const Estimate& estimate,
                   std::vector<double> scales, const MaskSink& masks) {
  Evidence evidence(std::move(scales));
  evidence.tracks_min_max = estimate.tracks_min_max;
  Reader(backends, spec, estimate.scores, evidence)
      .read(first_reads(backends.layers(), estimate), masks);
  return evidence;
}

}  // namespace lampfast
