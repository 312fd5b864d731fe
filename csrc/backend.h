// Backend: the memory that layers live in (the host's or one GPU's), and what the stages ask of it,
// one call each.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <vector>

#include "core/big_uint.h"
#include "core/group_pattern.h"
#include "core/group_tallies.h"
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

// The layers of one call and, for each, the tensor that the call writes: the weights to prune, a
// mask, or scores.
struct Job {
  const std::vector<Layer>& layers;
  const std::vector<Layer>& targets;  // one per layer, or none
};

// Whether a partition stores candidates within the memory budget (core/candidate_budget.h), or all
// of them, whatever memory that takes.
enum class StoreLimit : std::uint8_t { budget, none };

struct PartitionResult {
  Partition found;
  bool is_stored;  // whether all keys inside the interval were stored
};

// Receives the keys of one layer's candidates, in any order. Called once per layer, possibly by
// many threads at once.
using KeySink = std::function<void(std::size_t id, std::vector<std::uint64_t>&& keys)>;

// Where the elements equal to a key (ties) of a piece are counted: in parts of 2^bits row-major
// indices of its layer, from `begin` on. The piece lies in the layer as Piece (sharding.h) says.
struct TieRequest {
  std::uint64_t key;
  std::int64_t first;
  const std::vector<std::int64_t>* index_steps;
  std::int64_t begin;
  int bits;
  std::size_t parts;
};

// Why a commit could not be finished.
struct CommitFailure {
  std::exception_ptr error;
  bool has_begun;  // whether some targets may have changed
};

// The values at these positions.
template <class T>
std::vector<T> pick(const std::vector<T>& values, const std::vector<std::size_t>& positions) {
  std::vector<T> picked;
  picked.reserve(positions.size());
  for (const std::size_t position : positions) picked.push_back(values[position]);
  return picked;
}

// Every id names a layer that lives here, and results are in the order of the ids. All results
// merge, in any order, with those found in other parts of the same layers.
class Backend {
 public:
  virtual ~Backend() = default;

  // --- estimate ---

  virtual std::vector<std::uint64_t> largest_keys(const LayerIds& ids) = 0;
  virtual std::vector<LogHistogram> draw(const LayerIds& ids) = 0;
  // Draws the same elements again and tallies them.
  virtual std::vector<GroupTallies> tally(const LayerIds& ids,
                                          const std::vector<TallyRequest>& requests) = 0;
  // Reads the whole layers and tallies them.
  virtual std::vector<Tally> probe(const LayerIds& ids,
                                   const std::vector<TallyRequest>& requests) = 0;

  // --- partition ---

  // How many bins a partition can have.
  virtual std::int64_t most_bins() const = 0;
  // Reads the layers once. A layer's candidates stay stored until it is read again. Where an
  // element is not finite, the sum above its interval is not finite either.
  virtual std::vector<PartitionResult> partition(const LayerIds& ids,
                                                 const std::vector<PartitionRequest>& requests,
                                                 const MaskSink& masks, StoreLimit limit) = 0;
  // Partitions the stored candidates instead of the weights. Every interval must lie within the one
  // that its layer's candidates were stored for.
  virtual std::vector<Partition> narrow(const LayerIds& ids,
                                        const std::vector<PartitionRequest>& requests) = 0;
  // Passes the keys of the stored candidates inside the requested intervals to the sink.
  virtual void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                       const KeySink& sink) = 0;
  // How many candidates a layer's last read may have found for them to be collected and sorted now,
  // rather than be narrowed further.
  virtual std::int64_t most_sorted(std::size_t id) const = 0;

  // --- select ---

  // The exact sum of the squares of all magnitudes of a layer whose keys are above `key`, in units
  // of 2^(2 * least_exponent) (core/key_format.h). Reads the layer again.
  virtual BigUint exact_sum_above(std::size_t id, std::uint64_t key) = 0;
  // How many ties each part has. Reads the layer again.
  virtual std::vector<std::int64_t> count_ties(std::size_t id, const TieRequest& request) = 0;

  // --- commit ---

  // Everything that may fail happens in prepare, on all backends, before any of them commits: it
  // takes all the memory and starts all the threads that the commit needs. `thresholds` are those
  // of all layers and must stay where they are until the commit, which zeroes the targets' pruned
  // weights or, if masks are wanted, completes the masks. The host's commit allocates nothing and
  // cannot fail; a GPU's only queues kernels, which fails where the GPU does.
  virtual void prepare(const LayerIds& ids, const std::vector<LayerThreshold>& thresholds,
                       const MaskSink& masks) = 0;
  virtual std::optional<CommitFailure> commit() noexcept = 0;

  // --- n:m patterns (core/group_pattern.h), one for each layer of the job ---

  // Writes the masks that keep the largest elements of each group. Throws NotFinite.
  virtual void mask_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) = 0;
  // As prepare: the commit then zeroes all but the largest elements of each group.
  virtual void prepare_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) = 0;

  // --- outside of pruning ---

  virtual std::vector<LayerStats> stats(const LayerIds& ids) = 0;  // throws NotFinite
  virtual std::optional<ElementIndex> first_not_finite(const LayerIds& ids) = 0;
  // Writes the LAMP score of every element to the targets, which are row-major: float64 for float64
  // layers and float32 for all others. Every score is within one unit in the last place. Throws
  // NotFinite.
  virtual void score(const LayerIds& ids) = 0;
  // Sets the bits of the weights that are neither 0 nor -0 (subnormals, infinities and NaN are not
  // zero) and clears the others.
  virtual void pack(const LayerIds& ids, const PackedMasks& masks) = 0;
  // Sets the weights whose bits are clear to +0; changes no other byte.
  virtual void apply_packed_masks(const LayerIds& ids, const PackedMasks& masks) = 0;
};

}  // namespace lampfast
