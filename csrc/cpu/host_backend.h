// The host backend: layers in host memory, read by the threads of a pool. The comments above the
// methods name the files that define them.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend.h"
#include "core/drawn_pieces.h"
#include "cpu/candidates.h"
#include "cpu/chunks.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// Where the elements of each group end that have been drawn from some of a layer's pieces.
using GroupEnds = std::array<std::int32_t, draw_groups>;

// Those elements (estimate.cpp), group after group.
struct DrawnCopy {
  Slab elements;  // null where the budget was spent
  GroupEnds ends{};
};

class HostBackend : public Backend {
 public:
  HostBackend(const Job& job, ThreadPool& pool);

  // estimate.cpp
  std::vector<std::uint64_t> largest_keys(const LayerIds& ids) override;
  std::vector<LogHistogram> draw(const LayerIds& ids) override;
  std::vector<GroupTallies> tally(const LayerIds& ids,
                                  const std::vector<TallyRequest>& requests) override;
  std::vector<Tally> probe(const LayerIds& ids, const std::vector<TallyRequest>& requests) override;

  // partition.cpp
  std::int64_t most_bins() const override;
  std::int64_t most_sorted(std::size_t) const override { return test_sizes ? 4 : 128; }
  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         const MaskSink& masks, StoreLimit limit) override;
  std::vector<Partition> narrow(const LayerIds& ids,
                                const std::vector<PartitionRequest>& requests) override;
  void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
               const KeySink& sink) override;

  // exact_sum.cpp
  BigUint exact_sum_above(std::size_t id, std::uint64_t key) override;

  // count_ties.cpp
  std::vector<std::int64_t> count_ties(std::size_t id, const TieRequest& request) override;

  // commit.cpp
  void prepare(const LayerIds& ids, const std::vector<LayerThreshold>& thresholds,
               const MaskSink& masks) override;
  std::optional<CommitFailure> commit() noexcept override;

  // groups.cpp
  void mask_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) override;
  void prepare_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) override;

  // layer_stats.cpp
  std::vector<LayerStats> stats(const LayerIds& ids) override;
  std::optional<ElementIndex> first_not_finite(const LayerIds& ids) override;

  // scores.cpp
  void score(const LayerIds& ids) override;

  // packed_masks.cpp
  void pack(const LayerIds& ids, const PackedMasks& masks) override;
  void apply_packed_masks(const LayerIds& ids, const PackedMasks& masks) override;

 private:
  // What the last read of a layer has left.
  struct Read {
    Stored stored;
    std::vector<CandidateSegment> candidates;  // in the order of positions
  };

  // What prepare has found out for commit, of one layer and in all.
  struct PendingLayer {
    std::int64_t first_kept = 0;  // see tie_boundary.h
    // The candidates, if a partition has written the mask of all other elements; else null.
    const std::vector<CandidateSegment>* to_settle = nullptr;
    Strides indices;  // row-major, where commit needs them
  };
  struct Pending {
    std::vector<Chunk> chunks;
    std::int64_t size = 0;  // of all chunks together
    const std::vector<LayerThreshold>* thresholds = nullptr;
    MaskSink masks;
    std::vector<PendingLayer> layers;  // by layer id
    std::vector<GroupBox> boxes;       // in place of thresholds and layers
  };

  const Read* useful_read(std::size_t id, const LayerThreshold& threshold) const;
  void commit(const Chunk& chunk) noexcept;
  void commit_groups(const Chunk& chunk) noexcept;

  const std::vector<Layer>& layers_;
  const std::vector<Layer>& targets_;
  ThreadPool& pool_;
  std::shared_ptr<CandidateBudget> budget_;
  std::vector<Read> reads_;  // by layer id
  // Copies of the draw, until the weights are read: by layer id and range of pieces (estimate.cpp).
  std::vector<std::vector<DrawnCopy>> drawn_;
  Pending pending_;
};

std::unique_ptr<Backend> host_backend(const Job& job, ThreadPool& pool);

}  // namespace lampfast::cpu
