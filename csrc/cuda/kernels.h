// The kernels' launchers. Works are on the device, `count` of them of one dtype, with `blocks` in
// all; everything is queued on the stream.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/log_histogram.h"
#include "core/packed_mask.h"
#include "cuda/work.h"

namespace lampfast::cuda {

struct Launch {
  Dtype dtype;
  bool settles_mask;  // by settle_masks
  const Work* works;
  int first;  // of the works that were sent together, which count the store's layers
  int count;
  std::int64_t blocks;
  cudaStream_t stream;
};

// Partitions one span a block; the candidates go to the store, and masks get what the interval
// decides.
void partition_weights(const Launch& launch, bool writes_masks, const Store& store, Row* rows);
// The same of the candidates in the store.
void partition_candidates(const Launch& launch, const Store& store, Row* rows);
// Adds up the rows of every layer in parts, one a block.
void sum_rows(const Launch& launch, const Row* rows, Row* parts);
// Collects the candidates inside the intervals, each layer's from Work::out on.
void collect_candidates(const Launch& launch, const Store& store, unsigned long long* found,
                        std::uint64_t* keys);

// One layer a block.
void draw_histograms(const Launch& launch, LogHistogram* histograms);

// Counts the elements that equal the thresholds' keys, in spans of the row-major order, one a
// block.
void count_ties(const Launch& launch, std::uint32_t* tie_counts);
// The row-major index of the first tie that is kept, by the counts or the rows; one layer a block.
void find_ties(const Launch& launch, const std::uint32_t* tie_counts, const Row* rows,
               std::int64_t* first_kept);

// Prunes, writes masks, or completes the masks that a partition has written; one span a block.
void zero(const Launch& launch, const std::int64_t* first_kept);
void mask(const Launch& launch, const std::int64_t* first_kept);
void settle_masks(const Launch& launch, const Store& store, const std::int64_t* first_kept);
// Has the kernels of a dtype loaded, which might fail when they are first launched.
void load_commit(Dtype dtype);

// One span a block. The stats and the digits must have been initialised.
void find_stats(const Launch& launch, DeviceStats* stats);
void sum_exactly(const Launch& launch, unsigned long long* digits);

// As in apply_packed_masks.h. They need no works and no memory.
void pack(const std::vector<Layer>& layers, const LayerIds& ids, const PackedMasks& masks,
          cudaStream_t stream);
void apply_packed_masks(const std::vector<Layer>& layers, const LayerIds& ids,
                        const PackedMasks& masks, cudaStream_t stream);

}  // namespace lampfast::cuda
