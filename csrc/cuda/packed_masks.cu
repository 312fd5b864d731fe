// Packed masks of layers on a GPU: sets the bits of the weights that are not zero, and zeroes the
// weights whose bits are clear.
//
// The kernels get the layers by value, as arguments, so that nothing is copied or waited for, and
// the launches can be captured into a CUDA graph.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "core/key_format.h"
#include "core/packed_mask.h"
#include "core/strided_walk.h"
#include "cuda/block.h"
#include "cuda/kernels.h"
#include "cuda/workspace.h"

namespace lampfast::cuda {
namespace {

// A layer and its mask, in a launch.
struct Masked {
  std::byte* data;
  MaskWord* words;
  std::int64_t size;
  std::int64_t first_block;  // the first of the blocks that work on it
};

// Layers that are dense in any order of memory: as many as an argument can hold.
struct DenseLayers {
  static constexpr int most = test_sizes ? 2 : 100;

  Masked at[most];
  int count;

  __device__ const Masked& of_block() const {
    return owner(at, count, std::int64_t{blockIdx.x}, &Masked::first_block);
  }
  __device__ std::int64_t place(std::int64_t position) const { return position; }
};

// One layer that is not dense. Tensors have at most 64 axes.
struct StridedLayer {
  static constexpr int most_axes = 64;
  struct Dimension {
    std::int64_t extent;
    std::int64_t stride;
  };

  Masked layer;
  Dimension axes[most_axes];  // outermost first
  int axis_count;

  __device__ const Masked& of_block() const { return layer; }
  __device__ std::int64_t place(std::int64_t position) const {
    std::int64_t place = 0;
    for (int a = axis_count; a-- > 0;) {
      const std::int64_t outer = position / axes[a].extent;
      place += (position - outer * axes[a].extent) * axes[a].stride;
      position = outer;
    }
    return place;
  }
};

// This block's span. It is of whole words, so that every word is written by one block.
template <class Key>
__device__ Span span_of(const Masked& layer) {
  static_assert(span_bytes / sizeof(Key) % word_weights == 0);
  constexpr std::int64_t size = span_bytes / static_cast<std::int64_t>(sizeof(Key));
  const std::int64_t begin = (std::int64_t{blockIdx.x} - layer.first_block) * size;
  return {begin, begin + size < layer.size ? begin + size : layer.size, 0};
}

// A warp votes on half a word at a time.
template <class Key, class Layers>
__global__ __launch_bounds__(block_threads) void pack_span(const Layers layers) {
  const Masked& layer = layers.of_block();
  const Span span = span_of<Key>(layer);
  const auto* data = reinterpret_cast<const Key*>(layer.data);
  auto* halves = reinterpret_cast<std::uint32_t*>(layer.words);
  const std::int64_t end = words_of(span.end) * word_weights;
  static_assert(block_threads % word_weights == 0);  // all lanes of a warp are in the loop, or none
  for (std::int64_t i = span.begin + threadIdx.x; i < end; i += block_threads) {
    bool is_kept = false;
    if (i < span.end)
      is_kept = static_cast<Key>(data[layers.place(i)] << 1) != 0;  // without the sign bit
    const unsigned half = __ballot_sync(0xffffffff, is_kept);
    if (threadIdx.x % 32 == 0) halves[i / 32] = half;
  }
}

template <class Key>
__global__ __launch_bounds__(block_threads) void apply_dense(const DenseLayers layers) {
  const Masked& layer = layers.of_block();
  const Span span = span_of<Key>(layer);
  auto* data = reinterpret_cast<Key*>(layer.data);
  constexpr int size = vector_size<Key>;
  constexpr unsigned all = (1U << size) - 1;
  const bool is_aligned = reinterpret_cast<std::uintptr_t>(data) % vector_bytes == 0;
  for (std::int64_t i = span.begin + std::int64_t{threadIdx.x} * size; i < span.end;
       i += std::int64_t{block_threads} * size) {
    const auto kept = static_cast<unsigned>(layer.words[i / word_weights] >> (i % word_weights));
    if ((kept & all) == all) continue;
    if (!is_aligned || span.end - i < size) {
#pragma unroll
      for (int e = 0; e < size; ++e) {
        if (i + e < span.end && (kept >> e & 1) == 0) data[i + e] = 0;
      }
      continue;
    }
    auto* const there = reinterpret_cast<uint4*>(data + i);
    uint4 bits{};
    if ((kept & all) != 0) bits = __ldcs(there);
    Vector<Key> vector;
    memcpy(&vector, &bits, sizeof(vector));
#pragma unroll
    for (int e = 0; e < size; ++e) {
      if ((kept >> e & 1) == 0) vector.at[e] = 0;
    }
    memcpy(&bits, &vector, sizeof(bits));
    __stcs(there, bits);
  }
}

template <class Key>
__global__ __launch_bounds__(block_threads) void apply_strided(const StridedLayer strided) {
  const Masked& layer = strided.layer;
  const Span span = span_of<Key>(layer);
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += block_threads) {
    const MaskWord word = layer.words[i / word_weights];
    if ((word >> (i % word_weights) & 1) != 0) continue;
    reinterpret_cast<Key*>(layer.data)[strided.place(i)] = 0;
  }
}

// Calls visit(layers, blocks, bytes per element) for launches that together have all ids: many
// dense layers at a time, or one that is not.
template <class Visit>
void for_each_launch(const std::vector<Layer>& layers, LayerIds ids, const PackedMasks& masks,
                     Visit&& visit) {
  const auto width = [&](std::size_t i) { return item_size(layers[i].dtype); };
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::size_t a, std::size_t b) { return width(a) < width(b); });
  DenseLayers dense{};
  std::int64_t blocks = 0;
  std::int64_t bytes = 0;
  const auto flush = [&] {
    if (dense.count > 0) visit(dense, blocks, bytes);
    dense.count = 0;
    blocks = 0;
  };
  for (const std::size_t i : ids) {
    const Layer& layer = layers[i];
    if (layer.size == 0) continue;
    const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
    if (!walk.is_one_run() || walk.step()[0] != 1) {
      StridedLayer strided{};
      strided.layer = {layer.data, masks[i], layer.size, 0};
      for (const auto& axis : walk.axes()) {
        if (strided.axis_count == StridedLayer::most_axes) {
          throw std::invalid_argument("a layer has more axes than a tensor can");
        }
        strided.axes[strided.axis_count++] = {axis.extent, axis.stride[0]};
      }
      visit(strided, spans_of(layer), width(i));
      continue;
    }
    if (dense.count == DenseLayers::most || width(i) != bytes) flush();
    bytes = width(i);
    dense.at[dense.count++] = {layer.data, masks[i], layer.size, blocks};
    blocks += spans_of(layer);
  }
  flush();
}

}  // namespace

void pack(const std::vector<Layer>& layers, const LayerIds& ids, const PackedMasks& masks,
          cudaStream_t stream) {
  for_each_launch(layers, ids, masks,
                  [&](const auto& batch, std::int64_t blocks, std::int64_t bytes) {
                    with_key(bytes, [&](auto key) {
                      using Layers = std::decay_t<decltype(batch)>;
                      launch("pack", pack_span<decltype(key), Layers>, blocks, stream, batch);
                    });
                  });
}

void apply_packed_masks(const std::vector<Layer>& layers, const LayerIds& ids,
                        const PackedMasks& masks, cudaStream_t stream) {
  for_each_launch(layers, ids, masks,
                  [&](const auto& batch, std::int64_t blocks, std::int64_t bytes) {
                    with_key(bytes, [&](auto key) {
                      using Key = decltype(key);
                      if constexpr (std::is_same_v<std::decay_t<decltype(batch)>, DenseLayers>) {
                        launch("apply_packed_masks", apply_dense<Key>, blocks, stream, batch);
                      } else {
                        launch("apply_packed_masks", apply_strided<Key>, blocks, stream, batch);
                      }
                    });
                  });
}

}  // namespace lampfast::cuda
