// Backend: where layers live (host memory, or one GPU), and what the stages ask of it, one call
// each.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "core/big_uint.h"
#include "core/intervals.h"
#include "core/layer.h"
#include "core/layer_stats.h"
#include "core/layer_threshold.h"
#include "core/log_histogram.h"
#include "core/mask_sink.h"
#include "core/not_finite.h"
#include "core/packed_mask.h"
#include "core/partition.h"

namespace lampfast {

// A call's layers, and what is written for each: its pruned weights, its mask or its scores.
struct Job {
  const std::vector<Layer>& layers;
  const std::vector<Layer>& targets;  // as many, or none
};

// The candidates that a partition stores: as many as the budget of memory allows, or all of them,
// whatever memory it takes.
enum class StoreLimit : std::uint8_t { budget, none };

struct PartitionResult {
  Partition found;
  bool is_stored;  // whether all keys inside the interval were
};

// Takes the keys of a layer's candidates, in any order. Called by many threads at once, for each
// layer once.
using KeySink = std::function<void(std::size_t id, std::vector<std::uint64_t>&& keys)>;

// All ids are those of layers that live there. Results are in the order of the ids; everything that
// is returned can be merged with what others find of the same layers, in any order.
class Backend {
 public:
  virtual ~Backend() = default;

  // --- estimate ---

  virtual std::vector<std::uint64_t> largest_keys(const LayerIds& ids) = 0;
  virtual std::vector<LogHistogram> draw(const LayerIds& ids) = 0;
  // An estimate by means of its own, where it has any, for the LAMP score if all layers live there.
  virtual std::optional<Estimate> estimate(const std::vector<double>& scales,
                                           std::int64_t count) = 0;

  // --- partition ---

  // One read of the layers. Candidates are stored until the layer is read again. Where an element is
  // not finite, the sum above its interval is not finite either.
  virtual std::vector<PartitionResult> partition(const LayerIds& ids,
                                                 const std::vector<PartitionRequest>& requests,
                                                 const MaskSink& masks, StoreLimit limit) = 0;
  // The same of stored candidates, for intervals within those that they were stored for.
  virtual std::vector<Partition> narrow(const LayerIds& ids,
                                        const std::vector<PartitionRequest>& requests) = 0;
  // The keys of stored candidates.
  virtual void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                       const KeySink& sink) = 0;

  // --- select ---

  // The exact sum of the squares of a layer's magnitudes above a key, by one more read of it.
  virtual BigUint exact_sum_above(std::size_t id, std::uint64_t key) = 0;

  // --- commit ---

  // What may fail comes in prepare, on all backends, before any of them commits. The thresholds are
  // those of all layers, and stay where they are until the commit. Zeroes the targets' pruned
  // weights or, where masks are wanted, completes them.
  virtual void prepare(const LayerIds& ids, const std::vector<LayerThreshold>& thresholds,
                       const MaskSink& masks) = 0;
  virtual void commit() = 0;

  // --- other verbs ---

  virtual std::vector<LayerStats> stats(const LayerIds& ids) = 0;  // throws NotFinite
  virtual std::optional<ElementIndex> first_not_finite(const LayerIds& ids) = 0;
  // Writes the LAMP score of every element to the targets, which are row-major, float64 for float64
  // layers and float32 for all others; each within one unit in the last place. Throws NotFinite.
  virtual void score(const LayerIds& ids) = 0;
  // Sets a mask's bits where weights are neither 0 nor -0; subnormals, infinities and NaN are not
  // zero.
  virtual void pack(const LayerIds& ids, const PackedMasks& masks) = 0;
  // Weights whose bit is clear become +0; no other byte is changed.
  virtual void apply_packed_masks(const LayerIds& ids, const PackedMasks& masks) = 0;
};

}  // namespace lampfast
