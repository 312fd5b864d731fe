// Histograms of samples (core/log_histogram.h), one layer per block.
#include <cub/block/block_reduce.cuh>

#include "core/key_format.h"
#include "core/log_histogram.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

using ReduceKey = cub::BlockReduce<unsigned long long, block_threads>;

struct Larger {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a < b ? b : a;
  }
};

// Calls body(key) for this thread's draws. What is not finite is the partition's to report.
template <class Format, class Body>
__device__ void for_each_draw(const Work& work, std::int64_t draws, Body&& body) {
  using Key = typename Format::Storage;
  for (std::int64_t draw = threadIdx.x; draw < draws; draw += block_threads) {
    const std::int64_t position = drawn_position(work.size, draws, draw);
    const Key key = Format::key(load<Key>(work, source_place(work, position)));
    body(key < Format::not_finite ? key : static_cast<Key>(Format::not_finite - 1));
  }
}

template <class Format>
__global__ __launch_bounds__(block_threads) void draw_histogram(const Work* __restrict__ works,
                                                                LogHistogram* histograms) {
  using Key = typename Format::Storage;
  constexpr int shift = histogram_shift<Format>();
  __shared__ typename ReduceKey::TempStorage reduce;
  __shared__ std::uint64_t first;
  __shared__ std::uint32_t counts[LogHistogram::bins];
  const Work& work = works[blockIdx.x];
  const std::int64_t draws = histogram_draws(work.size);
  unsigned long long largest = 0;
  for_each_draw<Format>(work, draws, [&](Key key) { largest = key > largest ? key : largest; });
  largest = ReduceKey(reduce).Reduce(largest, Larger{});
  if (threadIdx.x == 0) {
    const std::uint64_t top = largest >> shift;
    first = top < LogHistogram::bins ? 0 : top - (LogHistogram::bins - 1);
  }
  for (int s = static_cast<int>(threadIdx.x); s < LogHistogram::bins; s += block_threads)
    counts[s] = 0;
  __syncthreads();
  for_each_draw<Format>(work, draws, [&](Key key) {
    // Another stream may have made the weight larger than it was when the largest was looked for.
    const std::uint64_t bin = key >> shift < first ? 0 : (key >> shift) - first;
    atomicAdd(&counts[bin < LogHistogram::bins ? bin : LogHistogram::bins - 1], 1U);
  });
  __syncthreads();
  LogHistogram& histogram = histograms[blockIdx.x];
  if (threadIdx.x == 0) {
    histogram.first = first;
    histogram.drawn = draws;
  }
  for (int s = static_cast<int>(threadIdx.x); s < LogHistogram::bins; s += block_threads) {
    histogram.counts[static_cast<std::size_t>(s)] = static_cast<std::uint16_t>(counts[s]);
  }
}

}  // namespace

void draw_histograms(const Launch& with, LogHistogram* histograms) {
  with_format(with.dtype, [&](auto format) {
    launch("draw_histograms", draw_histogram<decltype(format)>, std::int64_t{with.count},
           with.stream, with.works, histograms + with.first);
  });
}

}  // namespace lampfast::cuda
