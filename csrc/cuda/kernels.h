// The functions that launch kernels. A launch has `count` works of one dtype, in device memory, and
// `blocks` blocks in all. Everything is queued on its stream.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/group_pattern.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/packed_mask.h"
#include "cuda/work.h"

namespace lampfast::cuda {

struct Launch {
  Dtype dtype;
  bool settles_mask;  // the commit uses settle_masks
  bool is_plain;      // every work is (Work::is_plain)
  const Work* works;
  int first;  // index of works[0] among all works that were sent, which index per-layer results
  int count;
  std::int64_t blocks;
  cudaStream_t stream;
};

// Calls body(Format{}, std::bool_constant<is_plain>{}) for a launch.
template <class Body>
void with_access(const Launch& launch, Body&& body) {
  with_format(launch.dtype, [&](auto format) {
    launch.is_plain ? body(format, std::true_type{}) : body(format, std::false_type{});
  });
}

// Calls body(Key{}) with the unsigned type of this size: nothing else of a dtype matters.
template <class Body>
void with_key(std::int64_t bytes, Body&& body) {
  switch (bytes) {
    case 1:
      return body(std::uint8_t{});
    case 2:
      return body(std::uint16_t{});
    case 4:
      return body(std::uint32_t{});
    default:
      return body(std::uint64_t{});
  }
}

// Partitions one span per block. Candidates go to the store, and the mask gets what the interval
// decides.
void partition_weights(const Launch& launch, bool writes_masks, const Store& store, Row* rows);
// Partitions the candidates in the store instead.
void partition_candidates(const Launch& launch, const Store& store, Row* rows);
// Adds up the rows of every layer in parts, one part per block.
void sum_rows(const Launch& launch, const Row* rows, Row* parts);
// Collects the candidates inside the intervals: those of a layer, at most Work::room, go to `keys`
// from Work::out on.
void collect_candidates(const Launch& launch, const Store& store, unsigned long long* found,
                        std::uint64_t* keys);

// One layer per block.
void draw_histograms(const Launch& launch, DeviceHistogram* histograms);
void tally_draws(const Launch& launch, DeviceTallies* tallies);

// Counts the elements that equal the thresholds' keys (Work::tie_counts), in spans of the row-major
// order, one span per block.
void count_ties(const Launch& launch, std::uint32_t* tie_counts);
void count_stored_ties(const Launch& launch, const Store& store, std::uint32_t* tie_counts);
// Finds the row-major index of the first tie that is kept, by tie_counts or by the rows; one layer
// per block.
void find_ties(const Launch& launch, const std::uint32_t* tie_counts, const Row* rows,
               std::int64_t* first_kept);

// Zeroes pruned weights, writes masks, or completes masks that a partition has written; one span
// per block.
void zero(const Launch& launch, const std::int64_t* first_kept);
void mask(const Launch& launch, const std::int64_t* first_kept);
void settle_masks(const Launch& launch, const Store& store, const std::int64_t* first_kept);
// Loads these kernels, as loading might fail at their first launch.
void load_commit(const Launch& launch);

// One span per block. The stats and the digits must have been initialised.
void find_stats(const Launch& launch, DeviceStats* stats);
void sum_exactly(const Launch& launch, unsigned long long* digits);

// Zeroes all but the largest elements of each group, or writes the masks that keep them. They need
// no works and no device memory.
void zero_groups(const GroupBox& box, const Layer& layer, const Layer& target, cudaStream_t stream);
void load_zero_groups(const Layer& layer, const Layer& target);  // as load_commit
void mask_groups(const GroupBox& box, const Layer& layer, const Layer& mask, cudaStream_t stream);

// As Backend::pack and apply_packed_masks. They need no works and no device memory.
void pack(const std::vector<Layer>& layers, const LayerIds& ids, const PackedMasks& masks,
          cudaStream_t stream);
void apply_packed_masks(const std::vector<Layer>& layers, const LayerIds& ids,
                        const PackedMasks& masks, cudaStream_t stream);

}  // namespace lampfast::cuda
