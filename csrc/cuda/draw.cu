// What drawn elements tell of their layers (core/drawn_pieces.h), one layer per block.
#include <cub/block/block_reduce.cuh>

#include "core/drawn_pieces.h"
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

__device__ DrawnPieces pieces_of(const Work& work) {
  constexpr std::int64_t longest = test_sizes ? 2 : 16;  // threads read neighbours together
  return {work.size, work.size < most_draws ? work.size : most_draws, longest};
}

// Calls body(piece, key) for this thread's draws. What is not finite is the partition's to report.
template <class Format, class Body>
__device__ void for_each_draw(const Work& work, const DrawnPieces& pieces, Body&& body) {
  using Key = typename Format::Storage;
  for (std::int64_t i = threadIdx.x; i < pieces.count() * pieces.length(); i += block_threads) {
    const std::int64_t piece = i / pieces.length();
    const std::int64_t position = pieces.begin(piece) + i % pieces.length();
    if (position >= work.size) continue;
    const Key key = Format::key(load<Key>(work, source_place(work, position)));
    body(piece, key < Format::not_finite ? key : static_cast<Key>(Format::not_finite - 1));
  }
}

template <class Format>
__global__ __launch_bounds__(block_threads) void draw_histogram(const Work* __restrict__ works,
                                                                DeviceHistogram* histograms) {
  using Key = typename Format::Storage;
  constexpr std::uint64_t bins = DeviceHistogram::bins;
  constexpr int shift = histogram_shift<Format>(DeviceHistogram::bits_per_octave);
  __shared__ typename ReduceKey::TempStorage reduce;
  __shared__ std::uint64_t first;
  __shared__ std::uint32_t counts[bins];
  __shared__ std::uint32_t drawn;
  __shared__ std::uint32_t zeros;
  const Work& work = works[blockIdx.x];
  const DrawnPieces pieces = pieces_of(work);
  unsigned long long largest = 0;
  for_each_draw<Format>(work, pieces,
                        [&](std::int64_t, Key key) { largest = key > largest ? key : largest; });
  largest = ReduceKey(reduce).Reduce(largest, Larger{});
  if (threadIdx.x == 0) {
    const std::uint64_t top = largest >> shift;
    first = top < bins ? 0 : top - (bins - 1);
    drawn = 0;
    zeros = 0;
  }
  for (std::uint64_t b = threadIdx.x; b < bins; b += block_threads) counts[b] = 0;
  __syncthreads();
  std::uint32_t own_drawn = 0;
  std::uint32_t own_zeros = 0;
  for_each_draw<Format>(work, pieces, [&](std::int64_t, Key key) {
    // Another stream may have made the weight larger than it was when the largest was looked for.
    const std::uint64_t bin = key >> shift < first ? 0 : (key >> shift) - first;
    atomicAdd(&counts[bin < bins ? bin : bins - 1], 1U);
    ++own_drawn;
    own_zeros += key >> shift == 0 ? 1U : 0U;
  });
  atomicAdd(&drawn, own_drawn);
  atomicAdd(&zeros, own_zeros);
  __syncthreads();
  DeviceHistogram& histogram = histograms[blockIdx.x];
  if (threadIdx.x == 0) {
    histogram.first = first;
    histogram.drawn = drawn;
    histogram.zeros = zeros;
  }
  for (std::uint64_t b = threadIdx.x; b < bins; b += block_threads) {
    histogram.counts[b] = static_cast<std::uint16_t>(counts[b]);
  }
}

// Tallies on either side of Work::low.
template <class Format>
__global__ __launch_bounds__(block_threads) void tally_draw(const Work* __restrict__ works,
                                                            DeviceTallies* tallies) {
  using Key = typename Format::Storage;
  __shared__ DeviceTallies sums;
  const Work& work = works[blockIdx.x];
  for (int g = static_cast<int>(threadIdx.x); g < draw_groups; g += block_threads) {
    sums.drawn[g] = 0;
    sums.below[g] = 0;
    sums.above[g] = 0.0;
  }
  __syncthreads();
  const auto low = static_cast<Key>(work.low);
  for_each_draw<Format>(work, pieces_of(work), [&](std::int64_t piece, Key key) {
    const int group = DrawnPieces::group(piece);
    atomicAdd(&sums.drawn[group], 1U);
    if (key < low) {
      atomicAdd(&sums.below[group], 1U);
    } else {
      const double magnitude = Format::value(key) * work.scale;
      atomicAdd(&sums.above[group], magnitude * magnitude);
    }
  });
  __syncthreads();
  DeviceTallies& result = tallies[blockIdx.x];
  for (int g = static_cast<int>(threadIdx.x); g < draw_groups; g += block_threads) {
    result.drawn[g] = sums.drawn[g];
    result.below[g] = sums.below[g];
    result.above[g] = sums.above[g];
  }
}

}  // namespace

void draw_histograms(const Launch& with, DeviceHistogram* histograms) {
  with_format(with.dtype, [&](auto format) {
    launch("draw_histograms", draw_histogram<decltype(format)>, std::int64_t{with.count},
           with.stream, with.works, histograms + with.first);
  });
}

void tally_draws(const Launch& with, DeviceTallies* tallies) {
  with_format(with.dtype, [&](auto format) {
    launch("tally_draws", tally_draw<decltype(format)>, std::int64_t{with.count}, with.stream,
           with.works, tallies + with.first);
  });
}

}  // namespace lampfast::cuda
