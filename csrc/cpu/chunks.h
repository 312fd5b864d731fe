// Cuts layers into chunks of about equal work, so that one huge layer and a thousand small ones
// both keep every thread busy.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/function_ref.h"
#include "core/layer.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/elements.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// The positions [begin, end) of a layer, in the visiting order of strided_walk.h.
struct Chunk {
  std::size_t layer;
  std::size_t position;  // of the layer in the list of ids that is cut into chunks
  std::int64_t begin;
  std::int64_t end;
};

constexpr std::int64_t chunk_size = test_sizes ? 20 : 1 << 17;

// Whole layers, one chunk each.
inline std::vector<Chunk> whole(const std::vector<Layer>& layers, const LayerIds& ids) {
  std::vector<Chunk> chunks;
  chunks.reserve(ids.size());
  for (std::size_t p = 0; p < ids.size(); ++p)
    chunks.push_back({ids[p], p, 0, layers[ids[p]].size});
  return chunks;
}

// A single layer, as one chunk.
inline std::vector<Chunk> whole(const Layer& layer) { return {{0, 0, 0, layer.size}}; }

// The same chunks in parts of at most `size` elements.
inline std::vector<Chunk> cut(const std::vector<Chunk>& wholes, std::int64_t size = chunk_size) {
  std::vector<Chunk> chunks;
  for (const Chunk& each : wholes) {
    for (std::int64_t begin = each.begin; begin < each.end; begin += size) {
      chunks.push_back({each.layer, each.position, begin, std::min(begin + size, each.end)});
    }
  }
  return chunks;
}

inline std::int64_t total_size(const std::vector<Chunk>& chunks) {
  std::int64_t total = 0;
  for (const Chunk& chunk : chunks) total += chunk.end - chunk.begin;
  return total;
}

// Cuts the given chunks, and calls body(chunk, worker) for each part, on the threads of the pool.
inline void for_each_chunk(const std::vector<Chunk>& wholes, ThreadPool& pool,
                           FunctionRef<void(const Chunk&, int)> body,
                           std::int64_t size = chunk_size) {
  const std::vector<Chunk> chunks = cut(wholes, size);
  pool.for_each(static_cast<std::int64_t>(chunks.size()), total_size(wholes),
                [&](std::int64_t chunk, int worker) {
                  body(chunks[static_cast<std::size_t>(chunk)], worker);
                });
}

// The most elements that are gathered at a time, and the runs that are not worth it.
constexpr std::int64_t long_run = test_sizes ? 4 : 256;
constexpr std::int64_t most_gathered = 4 * long_run;

// Calls body(elements, count) for copies of the products that make up the chunk of a layer with
// scales, in the order of positions.
template <class Body>
void for_each_product_stretch(const Layer& layer, const Chunk& chunk, Body&& body) {
  alignas(64) std::array<std::uint64_t, most_gathered> products;
  std::int64_t count = 0;
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  const auto& step = walk.step();
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    const ElementRun run{at[0], step[0], at[1], step[1]};
    for (std::int64_t done = 0; done < length;) {
      const std::int64_t taken = std::min(length - done, most_gathered - count);
      load_products(layer, run.from(done), taken, products.data() + count);
      done += taken;
      count += taken;
      if (count < most_gathered) continue;
      body(products.data(), count);
      count = 0;
    }
  });
  if (count > 0) body(products.data(), count);
}

// Whether a layer has scales and so many elements share one that it is worth while to compare their
// codes, with bounds that the scale makes of those of the products. `indices` are row-major
// strides.
inline bool compares_codes(const Layer& layer, const Strides& indices) noexcept {
  constexpr std::int64_t worth_while = test_sizes ? 2 : 16;
  if (!layer.scales || layer.size == 0) return false;
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  return BlockPosition(layer, 0, walk.step()[1]).longest_shared() >= worth_while;
}

inline bool compares_codes(const Layer& layer) {
  return layer.scales && compares_codes(layer, row_major_strides(layer.shape));
}

// Calls body(codes, count, scale) for contiguous codes, or copies that gather them, that make up
// the chunk of a layer with scales, in the order of positions.
template <class Body>
void for_each_code_stretch(const Layer& layer, const Chunk& chunk, Body&& body) {
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  const auto& step = walk.step();
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    for_each_scale(layer, {at[0], step[0], at[1], step[1]}, length,
                   [&](auto, const std::uint8_t* codes, std::int64_t count, double scale) {
                     body(codes, count, scale);
                   });
  });
}

// Calls body(elements, count) for contiguous stretches that make up the chunk, in the order of
// positions: its own memory where runs are long and dense, else copies that gather many runs.
template <class Element, class Body>
void for_each_stretch(const Layer& layer, const Chunk& chunk, Body&& body) {
  if constexpr (sizeof(Element) == sizeof(std::uint64_t)) {
    if (layer.scales) return for_each_product_stretch(layer, chunk, body);
  }
  const auto* data = reinterpret_cast<const Element*>(layer.data);
  if (is_row_major(layer.shape, layer.strides)) {  // spares small layers the walk
    body(data + chunk.begin, chunk.end - chunk.begin);
    return;
  }
  std::array<Element, most_gathered> gathered;
  std::int64_t count = 0;
  const auto flush = [&] {
    if (count > 0) body(gathered.data(), count);
    count = 0;
  };
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
    const Element* run = data + offsets[0];
    if (step == 1 && length >= long_run) {
      flush();
      body(run, length);
      return;
    }
    while (length > 0) {
      const std::int64_t room = most_gathered - count;
      const std::int64_t taken = std::min(length, room);
      Element* to = gathered.data() + count;
      for (std::int64_t i = 0; i < taken; ++i) to[i] = run[i * step];
      run += taken * step;
      length -= taken;
      count += taken;
      if (taken == room) flush();
    }
  });
  flush();
}

}  // namespace lampfast::cpu
