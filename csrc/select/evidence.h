// Evidence: what the reads have found out so far about each layer, and the reader that gathers it.
#pragma once

#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <vector>

#include "backends.h"
#include "core/intervals.h"
#include "core/layer.h"
#include "core/mask_sink.h"
#include "core/partition.h"
#include "core/selection_spec.h"
#include "select/rank_bounds.h"

namespace lampfast {

// Weights that another thread or process changes have contradicted what was read of them before.
struct WeightsChanged : std::runtime_error {
  WeightsChanged()
      : std::runtime_error(
            "the weights keep changing while they are read, so they cannot be ranked; let no other "
            "thread change them during the call") {}
};

// All members have one entry per layer.
struct Evidence {
  std::vector<double> scales;           // for scaled_square (key_format.h)
  std::vector<RankBounds> rank_bounds;  // from the last read
  std::vector<Sides> sides;             // the interval of that read, and what lies beside it
  std::vector<KeyInterval> stored;      // the interval whose candidates are all stored, or empty
  std::vector<bool> tracks_min_max;     // whether bins record their smallest and largest keys
  std::vector<int> misses;              // how often an interval did not hold the threshold
  std::vector<bool> is_read_in_part;    // whether ranks have read only a part of what it needed
  std::vector<bool> is_sorted;          // whether all keys inside its interval have been sorted

  explicit Evidence(std::vector<double> scales);

  std::int64_t total_misses() const {
    return std::accumulate(misses.begin(), misses.end(), std::int64_t{0});
  }
};

// The layers to read, and the interval of keys for each.
struct Reads {
  LayerIds ids;
  std::vector<KeyInterval> intervals;

  bool empty() const { return ids.empty(); }
  void add(std::size_t id, const KeyInterval& interval) {
    ids.push_back(id);
    intervals.push_back(interval);
  }
};

// Reads layers and adds what it learns to the evidence: details only of the scores that matter.
class Reader {
 public:
  Reader(Backends& backends, const SelectionSpec& spec, const ScoreInterval& scores,
         Evidence& evidence)
      : backends_(backends), spec_(spec), scores_(scores), evidence_(evidence) {}

  // Both write masks on the way, where they read weights. Both throw WeightsChanged, and NotFinite,
  // as another thread may have made a candidate so before it was stored.
  //
  // Reads stored candidates where they have what is wanted, else the weights.
  void read(const Reads& reads, const MaskSink& masks) { read(reads, StoreLimit::budget, masks); }
  // Sorts all keys inside the intervals, whatever memory that takes. Ranks gather them.
  void sort(const Reads& reads, const MaskSink& masks);

 private:
  void read(const Reads& reads, StoreLimit limit, const MaskSink& masks);
  void gather(const Reads& reads, const MaskSink& masks);
  std::vector<PartitionRequest> requests(const Reads& reads, StoreLimit limit) const;
  void learn(const LayerIds& ids, const std::vector<const Partition*>& found, StoreLimit limit);
  void learn_from_bins(const LayerIds& ids, const std::vector<const Partition*>& found);
  void learn_bounds(std::size_t id, RankBounds&& bounds);
  void check_sides(std::size_t id, const Sides& sides, std::int64_t inside) const;
  void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests);
  void learn_from_keys(std::size_t id, std::vector<std::uint64_t>&& keys);

  Backends& backends_;
  const SelectionSpec& spec_;
  ScoreInterval scores_;
  Evidence& evidence_;
};

// The first read of all layers.
Evidence partition(Backends& backends, const SelectionSpec& spec, const Estimate& estimate,
                   std::vector<double> scales, const MaskSink& masks);

}  // namespace lampfast
