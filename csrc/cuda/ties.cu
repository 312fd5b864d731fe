// Finds, for layers of whose ties (elements equal to the threshold's key) only some are pruned, the
// first one in row-major order that is kept.
#include <cub/block/block_reduce.cuh>
#include <cub/block/block_scan.cuh>

#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

using ReduceCount = cub::BlockReduce<std::uint32_t, block_threads>;
using ScanCount = cub::BlockScan<std::uint32_t, block_threads>;

template <class Format>
__global__ __launch_bounds__(block_threads) void count_in_span(const Work* __restrict__ works,
                                                               int work_count,
                                                               std::uint32_t* tie_counts) {
  using Key = typename Format::Storage;
  __shared__ typename ReduceCount::TempStorage reduce;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  if (work.tie_counts != TieCounts::of_weights) return;
  const Span span = Span::of_block<Key>(work);
  std::uint32_t count = 0;
  for_each_element<Format>(work, span, work.by_index, [&](Key key, const ElementOffsets&) {
    if (key == work.low) ++count;
  });
  count = ReduceCount(reduce).Sum(count);
  if (threadIdx.x == 0) tie_counts[span.number] = count;
}

template <class Key>
__global__ __launch_bounds__(block_threads) void count_stored(const Work* __restrict__ works,
                                                              int work_count, Store store,
                                                              std::uint32_t* tie_counts) {
  __shared__ typename ReduceCount::TempStorage reduce;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  if (work.tie_counts != TieCounts::of_candidates) return;
  const Span span = Span::of_block<Key>(work);
  std::uint32_t count = 0;
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    for (std::uint32_t i = threadIdx.x; i < segment.count; i += block_threads) {
      if (keys[i] == work.low) ++count;
    }
  }
  count = ReduceCount(reduce).Sum(count);
  if (threadIdx.x == 0) tie_counts[span.number] = count;
}

// This thread's part of a span in row-major order.
struct Stretch {
  std::int64_t begin;
  std::int64_t end;

  __device__ explicit Stretch(const Span& span) {
    const std::int64_t each = (span.end - span.begin + block_threads - 1) / block_threads;
    begin = span.begin + each * threadIdx.x;
    end = begin + each < span.end ? begin + each : span.end;
  }
};

template <class Format>
__device__ bool is_tie(const Work& work, std::int64_t index) {
  using Key = typename Format::Storage;
  return Format::key(load<Key>(work, work.by_index.at(index).source)) == work.low;
}

template <class Format>
__global__ __launch_bounds__(block_threads) void find_tie(const Work* __restrict__ works,
                                                          const std::uint32_t* tie_counts,
                                                          const Row* rows,
                                                          std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  __shared__ typename ScanCount::TempStorage scan;
  __shared__ std::int64_t found;     // the span that has the first kept tie, or -1
  __shared__ std::uint32_t skipped;  // ties in the spans before it in this round
  const Work& work = works[blockIdx.x];
  const std::int64_t spans = spans_of(work.size, std::int64_t{sizeof(Key)});
  std::int64_t wanted = work.ties;  // the wanted-th tie from here on, from 0, is the first kept one
  if (threadIdx.x == 0) {
    found = -1;
    if (wanted == 0) first_kept[blockIdx.x] = 0;
  }
  if (wanted == 0) return;
  __syncthreads();
  for (std::int64_t begin = 0; begin < spans && found < 0; begin += block_threads) {
    const std::int64_t own = begin + threadIdx.x;
    std::uint32_t count = 0;
    if (own < spans) {
      const std::int64_t number = work.first_span + own;
      const bool is_in_rows = work.tie_counts == TieCounts::in_rows;
      count = is_in_rows ? rows[number].counts[work.tie_bin] : tie_counts[number];
    }
    std::uint32_t before = 0;
    std::uint32_t all = 0;
    ScanCount(scan).ExclusiveSum(count, before, all);
    __syncthreads();
    if (before <= wanted && wanted < std::int64_t{before} + count) {
      found = own;
      skipped = before;
    }
    __syncthreads();
    if (found < 0) wanted -= all;
  }
  if (found < 0) {
    if (threadIdx.x == 0) first_kept[blockIdx.x] = work.size;
    return;
  }
  wanted -= skipped;

  const Stretch stretch(Span::of<Key>(work, found));
  std::uint32_t count = 0;
  for (std::int64_t i = stretch.begin; i < stretch.end; ++i) {
    if (is_tie<Format>(work, i)) ++count;
  }
  std::uint32_t before = 0;
  ScanCount(scan).ExclusiveSum(count, before);
  if (wanted < before || wanted >= std::int64_t{before} + count) return;
  wanted -= before;
  for (std::int64_t i = stretch.begin; i < stretch.end; ++i) {
    if (is_tie<Format>(work, i) && wanted-- == 0) first_kept[blockIdx.x] = i;
  }
}

}  // namespace

void count_ties(const Launch& with, std::uint32_t* tie_counts) {
  with_format(with.dtype, [&](auto format) {
    launch("count_ties", count_in_span<decltype(format)>, with.blocks, with.stream, with.works,
           with.count, tie_counts);
  });
}

void count_stored_ties(const Launch& with, const Store& store, std::uint32_t* tie_counts) {
  with_stored_format(with.dtype, [&](auto format) {
    launch("count_stored_ties", count_stored<typename decltype(format)::Storage>, with.blocks,
           with.stream, with.works, with.count, store, tie_counts);
  });
}

void find_ties(const Launch& with, const std::uint32_t* tie_counts, const Row* rows,
               std::int64_t* first_kept) {
  with_format(with.dtype, [&](auto format) {
    launch("find_ties", find_tie<decltype(format)>, std::int64_t{with.count}, with.stream,
           with.works, tie_counts, rows, first_kept + with.first);
  });
}

}  // namespace lampfast::cuda
