// Statistics of layers on a GPU, and exact sums of squares for the few comparisons that need them.
#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

template <class Format>
__global__ __launch_bounds__(block_threads) void stats_of_span(const Work* __restrict__ works,
                                                               int first_work, int work_count,
                                                               DeviceStats* stats) {
  using Key = typename Format::Storage;
  __shared__ DeviceStats shared;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  DeviceStats& total = stats[result_index(works, work, first_work)];
  constexpr unsigned long long none = ~0ULL;
  if (threadIdx.x == 0) shared = {0, none, 0, none};
  __syncthreads();
  DeviceStats own{0, none, 0, none};
  const auto take = [&](Key key, const ElementOffsets& at) {
    if (key == 0) ++own.zeros;
    if (key != 0 && key < own.smallest) own.smallest = key;
    if (key > own.largest) own.largest = key;
    const auto index = static_cast<unsigned long long>(at.index);
    if (key >= Format::not_finite && index < own.first_not_finite) own.first_not_finite = index;
  };
  for_each_element<Format>(work, Span::of_block<Key>(work), work.by_memory, take);
  if (own.zeros > 0) atomicAdd(&shared.zeros, own.zeros);
  atomicMin(&shared.smallest, own.smallest);
  atomicMax(&shared.largest, own.largest);
  if (own.first_not_finite != none) atomicMin(&shared.first_not_finite, own.first_not_finite);
  __syncthreads();
  if (threadIdx.x != 0) return;
  atomicAdd(&total.zeros, shared.zeros);
  atomicMin(&total.smallest, shared.smallest);
  atomicMax(&total.largest, shared.largest);
  atomicMin(&total.first_not_finite, shared.first_not_finite);
}

// The digits of all exponents of float64 do not fit a block's shared memory, and these sums are
// rarely needed, so every digit is added straight to global memory.
template <class Format>
__global__ __launch_bounds__(block_threads) void sum_span(const Work* __restrict__ works,
                                                          int work_count,
                                                          unsigned long long* digits) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const auto add = [&](Key key, const ElementOffsets&) {
    if (key <= work.low) return;
    const auto mantissa = Uint128{Format::mantissa(key)};
    Uint128 square = mantissa * mantissa;
    unsigned long long* digit = digits + Format::exponent_index(key) * digits_of_square<Format>;
    for (; square != 0; square >>= digit_bits) {
      const auto value = static_cast<unsigned long long>(square) & ((1ULL << digit_bits) - 1);
      if (value != 0) atomicAdd(digit, value);
      ++digit;
    }
  };
  for_each_element<Format>(work, Span::of_block<Key>(work), work.by_memory, add);
}

}  // namespace

void find_stats(const Launch& with, DeviceStats* stats) {
  with_format(with.dtype, [&](auto format) {
    launch("find_stats", stats_of_span<decltype(format)>, with.blocks, with.stream, with.works,
           with.first, with.count, stats);
  });
}

void sum_exactly(const Launch& with, unsigned long long* digits) {
  with_format(with.dtype, [&](auto format) {
    launch("sum_exactly", sum_span<decltype(format)>, with.blocks, with.stream, with.works,
           with.count, digits);
  });
}

}  // namespace lampfast::cuda
