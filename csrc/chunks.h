// Cuts layers into chunks of about equal work, so that one huge layer and a thousand small ones
// both keep every thread busy.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <vector>

#include "both.h"
#include "cpu/parallel.h"
#include "layer.h"
#include "tiny.h"
#include "walk.h"

namespace lampfast {

// Where the part begins, or the last one ends, of `parts` equal parts of a whole.
LAMPFAST_BOTH inline std::int64_t part_begin(std::int64_t size, std::int64_t parts,
                                             std::int64_t part) {
  return size / parts * part + std::min(size % parts, part);
}

// The positions [begin, end) of a layer, in the visiting order of walk.h.
struct Chunk {
  std::size_t layer;
  std::int64_t begin;
  std::int64_t end;
};

constexpr std::int64_t chunk_size = tiny ? 20 : 1 << 17;

inline std::vector<Chunk> whole(const std::vector<Layer>& layers, const Chosen& chosen) {
  std::vector<Chunk> ranges;
  ranges.reserve(chosen.size());
  for (const std::size_t i : chosen) ranges.push_back({i, 0, layers[i].size});
  return ranges;
}

// Calls body(chunk, worker) for chunks that make up the ranges, each of at most `size` weights.
inline void for_each_chunk(const std::vector<Chunk>& ranges, cpu::Team& team,
                           const std::function<void(const Chunk&, int)>& body,
                           std::int64_t size = chunk_size) {
  std::vector<Chunk> chunks;
  std::int64_t total = 0;
  for (const Chunk& range : ranges) {
    total += range.end - range.begin;
    for (std::int64_t begin = range.begin; begin < range.end; begin += size) {
      chunks.push_back({range.layer, begin, std::min(begin + size, range.end)});
    }
  }
  team.for_each(static_cast<std::int64_t>(chunks.size()), total,
                [&](std::int64_t chunk, int worker) {
                  body(chunks[static_cast<std::size_t>(chunk)], worker);
                });
}

// Calls body(elements, count) for stretches that make up the chunk: its runs where these are long
// and dense, else copies of many runs together.
template <class Element, class Body>
void for_each_stretch(const Layer& layer, const Element* data, const Chunk& chunk, Body&& body) {
  if (is_row_major(layer.shape, layer.strides)) {  // spares a small layer the walk's memory
    body(data + chunk.begin, chunk.end - chunk.begin);
    return;
  }
  constexpr std::int64_t long_run = tiny ? 4 : 256;
  std::array<Element, 4 * long_run> gathered;
  std::int64_t count = 0;
  const auto flush = [&] {
    if (count > 0) body(gathered.data(), count);
    count = 0;
  };
  const Walk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
    const Element* run = data + offsets[0];
    if (step == 1 && length >= long_run) {
      flush();
      body(run, length);
      return;
    }
    while (length > 0) {
      const auto room = static_cast<std::int64_t>(gathered.size()) - count;
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

}  // namespace lampfast
