// Sketches (sketch.h), a block for each layer.
#include <cub/block/block_reduce.cuh>

#include "cuda/block.h"
#include "cuda/kernels.h"
#include "magnitude.h"
#include "sketch.h"

namespace lampfast::cuda {
namespace {

using ReduceKey = cub::BlockReduce<unsigned long long, block_threads>;

struct Larger {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const {
    return a < b ? b : a;
  }
};

// Calls body(key) for this thread's draws. What is not finite is the survey's to report.
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
__global__ __launch_bounds__(block_threads) void draw_sketch(const Work* __restrict__ works,
                                                             Sketch* sketches) {
  using Key = typename Format::Storage;
  constexpr int shift = sketch_shift<Format>();
  __shared__ typename ReduceKey::TempStorage reduce;
  __shared__ std::uint64_t first;
  __shared__ std::uint32_t counts[Sketch::slots];
  const Work& work = works[blockIdx.x];
  const std::int64_t draws = sketch_draws(work.size);
  unsigned long long largest = 0;
  for_each_draw<Format>(work, draws, [&](Key key) { largest = key > largest ? key : largest; });
  largest = ReduceKey(reduce).Reduce(largest, Larger{});
  if (threadIdx.x == 0) {
    const std::uint64_t top = largest >> shift;
    first = top < Sketch::slots ? 0 : top - (Sketch::slots - 1);
  }
  for (int s = static_cast<int>(threadIdx.x); s < Sketch::slots; s += block_threads) counts[s] = 0;
  __syncthreads();
  for_each_draw<Format>(work, draws, [&](Key key) {
    const std::uint64_t slot = key >> shift;
    atomicAdd(&counts[slot < first ? 0 : slot - first], 1U);
  });
  __syncthreads();
  Sketch& sketch = sketches[blockIdx.x];
  if (threadIdx.x == 0) {
    sketch.first = first;
    sketch.drawn = draws;
  }
  for (int s = static_cast<int>(threadIdx.x); s < Sketch::slots; s += block_threads) {
    sketch.counts[static_cast<std::size_t>(s)] = static_cast<std::uint16_t>(counts[s]);
  }
}

}  // namespace

void draw_sketches(const Launch& with, Sketch* sketches) {
  with_format(with.dtype, [&](auto format) {
    launch("draw_sketches", draw_sketch<decltype(format)>, std::int64_t{with.count}, with.stream,
           with.works, sketches + with.first);
  });
}

}  // namespace lampfast::cuda
