// The layout of the memory that a call is lent on a GPU and in the host.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/candidate_budget.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/test_sizes.h"
#include "cuda/gpu_backend.h"
#include "cuda/work.h"

namespace lampfast::cuda {

inline bool stores_candidates(Dtype dtype) {
  return with_format(dtype, [](auto format) { return stores<typename decltype(format)::Storage>; });
}

inline std::int64_t spans_of(const Layer& layer) {
  return spans_of(layer.size, item_size(layer.dtype));
}

inline std::int64_t parts_of(std::int64_t spans) {
  return (spans + rows_in_part - 1) / rows_in_part;
}

// Takes memory piece by piece. With a null base it only adds up how much is needed.
class Arena {
 public:
  explicit Arena(std::byte* base) : base_(base) {}

  template <class T>
  T* take(std::int64_t count) {
    constexpr std::int64_t alignment = 256;
    used_ = (used_ + alignment - 1) / alignment * alignment;
    auto* const piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += count * static_cast<std::int64_t>(sizeof(T));
    return piece;
  }

  std::int64_t used() const { return used_; }

 private:
  std::byte* base_;
  std::int64_t used_ = 0;
};

// The most axes that a layer's two visiting orders have together.
inline std::int64_t most_axes(const Layer& layer) {
  return 2 * static_cast<std::int64_t>(std::max<std::size_t>(layer.shape.size(), 1));
}

struct Workspace {
  static constexpr std::int64_t draw_bytes =
      std::max(sizeof(DeviceHistogram), sizeof(DeviceTallies));  // of a layer
  static constexpr std::int64_t most_collected = test_sizes ? 64 : 1 << 15;

  Work* works;
  VisitAxis* axes;
  Row* rows;
  DeviceHistogram* histograms;  // in the memory of the rows, which come later
  DeviceTallies* tallies;       // and these, too
  Row* parts;
  std::uint32_t* tie_counts;
  std::int64_t* first_kept;
  Store store;
  DeviceStats* stats;
  unsigned long long* digits;
  unsigned long long* found;
  std::uint32_t* not_finite;
  std::uint64_t* collected;
  // In the host, page-locked: what is received, and what is sent.
  std::byte* results;
  Work* sent_works;
  VisitAxis* sent_axes;
  DeviceStats* sent_stats;
  Needs needs;

  Workspace(const std::vector<Layer>& layers, int device, std::byte* memory,
            std::byte* host_memory) {
    std::int64_t count = 0;
    std::int64_t axis_count = 0;
    std::int64_t spans = 0;
    std::int64_t part_count = 0;
    std::int64_t bytes = 0;  // of layers whose candidates are stored
    for (const Layer& layer : layers) {
      if (layer.device != device) continue;
      ++count;
      axis_count += most_axes(layer);
      spans += spans_of(layer);
      part_count += parts_of(spans_of(layer));
      if (stores_candidates(layer.dtype)) bytes += layer.size * item_size(layer.dtype);
    }
    Arena arena(memory);
    works = arena.take<Work>(count);
    axes = arena.take<VisitAxis>(axis_count);
    const auto row_bytes =
        std::max<std::int64_t>(spans * std::int64_t{sizeof(Row)}, count * draw_bytes);
    auto* const shared = arena.take<std::byte>(row_bytes);
    rows = reinterpret_cast<Row*>(shared);
    histograms = reinterpret_cast<DeviceHistogram*>(shared);
    tallies = reinterpret_cast<DeviceTallies*>(shared);
    parts = arena.take<Row>(part_count);
    tie_counts = arena.take<std::uint32_t>(spans);
    first_kept = arena.take<std::int64_t>(count);
    stats = arena.take<DeviceStats>(count);
    found = arena.take<unsigned long long>(count);
    not_finite = arena.take<std::uint32_t>(1);
    collected = arena.take<std::uint64_t>(std::max<std::int64_t>(most_collected, most_digits));
    digits = reinterpret_cast<unsigned long long*>(collected);  // never at the same time

    constexpr std::int64_t least_bytes = test_sizes ? 1 << 10 : 1 << 17;
    // Candidates have their places beside them.
    store.bytes = static_cast<std::uint64_t>(least_bytes + candidate_bytes(bytes) / 4 * 5);
    store.segment_limit = static_cast<std::uint32_t>(
        spans + static_cast<std::int64_t>(store.bytes) / (tile_bytes / 4));
    store.keys = arena.take<std::byte>(static_cast<std::int64_t>(store.bytes));
    store.segments = arena.take<Segment>(store.segment_limit);
    store.used_bytes = arena.take<unsigned long long>(1);
    store.used_segments = arena.take<std::uint32_t>(1);
    store.chains = arena.take<std::uint32_t>(spans);
    store.taken = arena.take<unsigned long long>(count);
    store.incomplete = arena.take<std::uint32_t>(count);

    Arena host(host_memory);
    const std::int64_t partition_bytes =
        part_count * std::int64_t{sizeof(Row)} + count * 4 + 16 + most_collected * 8;
    results = host.take<std::byte>(
        std::max({partition_bytes, count * draw_bytes, count * std::int64_t{sizeof(DeviceStats)},
                  std::int64_t{most_digits} * 8}));
    sent_works = host.take<Work>(count);
    sent_axes = host.take<VisitAxis>(axis_count);
    sent_stats = host.take<DeviceStats>(count);
    arena.take<std::byte>(0);  // what follows is aligned too
    needs = {arena.used(), host.used()};
  }
};

}  // namespace lampfast::cuda
