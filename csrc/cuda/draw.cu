// What drawn elements tell of their layers (core/drawn_pieces.h), one layer per block.
#include "core/drawn_pieces.h"
#include "core/key_format.h"
#include "core/log_histogram.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

// A layer's draws are few and far apart: what takes time is waiting for them, so many threads load
// several at once.
constexpr int draw_threads = test_sizes ? 64 : 1024;
template <bool is_plain>  // where others are takes many registers to find out
constexpr int draws_in_flight = test_sizes || !is_plain ? 2 : 8;

// Threads read neighbours together.
constexpr std::int64_t longest_piece = test_sizes ? 2 : 16;
static_assert(32 % longest_piece == 0);  // add_up needs whole pieces in a warp

__device__ DrawnPieces pieces_of(const Work& work) {
  return {work.size, work.size < most_draws ? work.size : most_draws, longest_piece};
}

// Calls body(piece, key, is_there) for this thread's draws, in all threads as often. What is not
// finite is the partition's to report.
template <class Format, bool is_plain, class Body>
__device__ void for_each_draw(const Work& work, const DrawnPieces& pieces, Body&& body) {
  using Key = typename Format::Storage;
  const auto length = static_cast<std::uint32_t>(pieces.length());
  const auto end = static_cast<std::uint32_t>(pieces.count()) * length;
  const auto* data = reinterpret_cast<const Key*>(work.data);
  const std::int64_t size = work.size;
  constexpr int in_flight = draws_in_flight<is_plain>;
  const auto own = [](std::uint32_t begin, int d) {
    return begin + static_cast<std::uint32_t>(d * draw_threads) + threadIdx.x;
  };
  for (std::uint32_t begin = 0; begin < end; begin += draw_threads * in_flight) {
    Key keys[in_flight];
    bool are_there[in_flight];
#pragma unroll
    for (int d = 0; d < in_flight; ++d) {
      const std::uint32_t i = own(begin, d);
      const std::int64_t position = i < end ? pieces.begin(i / length) + i % length : size;
      are_there[d] = position < size;
      keys[d] = 0;
      if (are_there[d]) keys[d] = data[is_plain ? position : source_place(work, position)];
    }
#pragma unroll
    for (int d = 0; d < in_flight; ++d) {
      const Key key = Format::key(keys[d]);
      const auto finite = static_cast<Key>(Format::not_finite - 1);
      const std::uint32_t i = own(begin, d);
      body(std::int64_t{i / length}, key < finite ? key : finite, are_there[d]);
    }
  }
}

// The first bin of a histogram that ends with this one.
__device__ std::uint32_t first_bin(std::uint32_t last) {
  constexpr std::uint32_t bins = DeviceHistogram::bins;
  return last < bins ? 0 : last - (bins - 1);
}

// Counts the bins of all keys that there can be, of which a histogram then has the last ones that
// are not empty. float64 has too many: its draws are read once more, before, for the largest.
template <class Format, bool is_plain>
__global__ __launch_bounds__(draw_threads) void draw_histogram(const Work* __restrict__ works,
                                                               DeviceHistogram* histograms) {
  using Key = typename Format::Storage;
  constexpr int shift = histogram_shift<Format>(DeviceHistogram::bits_per_octave);
  constexpr auto all_bins = static_cast<std::uint32_t>(Format::magnitude_mask >> shift) + 1;
  constexpr bool has_all = all_bins <= 1 << 12;
  constexpr std::uint32_t bins = DeviceHistogram::bins;
  __shared__ std::uint32_t counts[has_all ? all_bins : bins];
  __shared__ std::uint32_t last;
  __shared__ std::uint32_t drawn;
  __shared__ std::uint32_t zeros;
  const Work& work = works[blockIdx.x];
  const DrawnPieces pieces = pieces_of(work);
  if (threadIdx.x == 0) last = drawn = zeros = 0;
  for (std::uint32_t b = threadIdx.x; b < (has_all ? all_bins : bins); b += draw_threads) {
    counts[b] = 0;
  }
  __syncthreads();
  const auto find_last = [&](std::uint32_t own_last) {
    atomicMax(&last, own_last);
    __syncthreads();
    return first_bin(last);
  };
  std::uint32_t own_last = 0;
  std::uint32_t base = 0;  // the bin of counts[0]
  if constexpr (!has_all) {
    for_each_draw<Format, is_plain>(work, pieces, [&](std::int64_t, Key key, bool) {
      const auto bin = static_cast<std::uint32_t>(key >> shift);
      own_last = bin > own_last ? bin : own_last;
    });
    base = find_last(own_last);
  }
  std::uint32_t own_drawn = 0;
  std::uint32_t own_zeros = 0;
  for_each_draw<Format, is_plain>(work, pieces, [&](std::int64_t, Key key, bool is_there) {
    if (!is_there) return;
    const auto bin = static_cast<std::uint32_t>(key >> shift);
    own_last = bin > own_last ? bin : own_last;
    ++own_drawn;
    own_zeros += bin == 0 ? 1U : 0U;
    // Another stream may have made the weight larger than it was when the largest was looked for.
    const std::uint32_t at = bin < base ? 0 : bin - base;
    atomicAdd(&counts[has_all || at < bins ? at : bins - 1], 1U);
  });
  atomicAdd(&drawn, own_drawn);
  atomicAdd(&zeros, own_zeros);
  const std::uint32_t first = has_all ? find_last(own_last) : base;
  for (std::uint32_t b = threadIdx.x; b < first - base; b += draw_threads) {
    if (counts[b] > 0) atomicAdd(&counts[first - base], counts[b]);
  }
  __syncthreads();
  DeviceHistogram& histogram = histograms[blockIdx.x];
  if (threadIdx.x == 0) {
    histogram.first = first;
    histogram.drawn = drawn;
    histogram.zeros = zeros;
  }
  for (std::uint32_t b = threadIdx.x; b < bins; b += draw_threads) {
    const bool has_count = !has_all || first + b < all_bins;
    histogram.counts[b] = static_cast<std::uint16_t>(has_count ? counts[first - base + b] : 0);
  }
}

// Tallies on either side of Work::low.
template <class Format, bool is_plain>
__global__ __launch_bounds__(draw_threads) void tally_draw(const Work* __restrict__ works,
                                                           DeviceTallies* tallies) {
  using Key = typename Format::Storage;
  __shared__ DeviceTallies sums;
  const Work& work = works[blockIdx.x];
  for (int g = static_cast<int>(threadIdx.x); g < draw_groups; g += draw_threads) {
    sums.drawn[g] = 0;
    sums.below[g] = 0;
    sums.above[g] = 0.0;
  }
  __syncthreads();
  const DrawnPieces pieces = pieces_of(work);
  const auto low = static_cast<Key>(work.low);
  const double scale = work.scale;
  const auto length = static_cast<unsigned>(pieces.length());
  for_each_draw<Format, is_plain>(work, pieces, [&](std::int64_t piece, Key key, bool is_there) {
    const double magnitude = is_there && key >= low ? Format::value(key) * scale : 0.0;
    std::uint32_t drawn = is_there ? 1 : 0;
    std::uint32_t below = is_there && key < low ? 1 : 0;
    double above = magnitude * magnitude;
    // Elements of a piece, which neighbouring threads have, are added up before they would wait for
    // each other's atomic operations.
    for (unsigned distance = length / 2; distance > 0; distance /= 2) {
      drawn += __shfl_down_sync(0xffffffff, drawn, distance, static_cast<int>(length));
      below += __shfl_down_sync(0xffffffff, below, distance, static_cast<int>(length));
      above += __shfl_down_sync(0xffffffff, above, distance, static_cast<int>(length));
    }
    if (threadIdx.x % length != 0 || drawn == 0) return;
    const int group = DrawnPieces::group(piece);
    atomicAdd(&sums.drawn[group], drawn);
    atomicAdd(&sums.below[group], below);
    atomicAdd(&sums.above[group], above);
  });
  __syncthreads();
  DeviceTallies& result = tallies[blockIdx.x];
  for (int g = static_cast<int>(threadIdx.x); g < draw_groups; g += draw_threads) {
    result.drawn[g] = sums.drawn[g];
    result.below[g] = sums.below[g];
    result.above[g] = sums.above[g];
  }
}

// One block per work, of draw_threads.
template <class Kernel, class Result>
void launch_draws(const char* name, Kernel kernel, const Launch& with, Result* results) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(with.count));
  config.blockDim = dim3(draw_threads);
  config.stream = with.stream;
  check(cudaLaunchKernelEx(&config, kernel, with.works, results + with.first), name);
}

}  // namespace

void draw_histograms(const Launch& with, DeviceHistogram* histograms) {
  with_access(with, [&](auto format, auto is_plain) {
    launch_draws("draw_histograms", draw_histogram<decltype(format), is_plain.value>, with,
                 histograms);
  });
}

void tally_draws(const Launch& with, DeviceTallies* tallies) {
  with_access(with, [&](auto format, auto is_plain) {
    launch_draws("tally_draws", tally_draw<decltype(format), is_plain.value>, with, tallies);
  });
}

}  // namespace lampfast::cuda
