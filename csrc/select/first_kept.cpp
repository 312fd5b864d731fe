// Most first kept elements are among those that have been told apart. The others are the smallest
// of what nobody had to look into, and are found by one read.
#include "select/first_kept.h"

#include <cstddef>

#include "core/key_format.h"
#include "select/rank_bounds.h"

namespace lampfast {

std::vector<LayerThreshold> thresholds_after(Backends& backends, const Evidence& evidence,
                                             const std::vector<std::int64_t>& pruned,
                                             const MaskSink& masks) {
  const std::vector<Layer>& layers = backends.layers();
  std::vector<LayerThreshold> thresholds;
  LayerIds unknown;
  std::vector<PartitionRequest> requests;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    thresholds.push_back({not_finite_key(layers[i].dtype), 0, pruned[i], 0.0});
    if (pruned[i] == layers[i].size) continue;
    const ScoredInterval* kept = evidence.rank_bounds[i].at_rank(pruned[i]);
    thresholds[i].key = kept->first;
    thresholds[i].ties = pruned[i] - kept->before;
    if (kept->is_one_key()) continue;
    unknown.push_back(i);
    const KeyInterval interval{kept->first, kept->last + 1};
    requests.push_back({interval, evidence.scales[i], true, evidence.stored[i].contains(interval)});
  }
  const std::vector<std::uint64_t> keys = backends.smallest_keys(unknown, requests, masks);
  for (std::size_t u = 0; u < unknown.size(); ++u) {
    if (keys[u] == no_key) throw WeightsChanged();
    thresholds[unknown[u]].key = keys[u];
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    thresholds[i].magnitude = magnitude_of(layers[i].dtype, thresholds[i].key);
  }
  return thresholds;
}

}  // namespace lampfast
