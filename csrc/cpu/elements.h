// Loads elements that do not lie in memory as the kernels want them: strided ones, and the products
// of codes and scales.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>

#include "core/block_scales.h"
#include "core/layer.h"
#include "core/test_sizes.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {

// Evenly spaced elements of a layer: where they lie in memory and, where the layer has scales,
// their row-major indices.
struct ElementRun {
  std::int64_t offset;
  std::int64_t step;
  std::int64_t index = 0;
  std::int64_t index_step = 0;

  ElementRun from(std::int64_t i) const {
    return {offset + i * step, step, index + i * index_step, index_step};
  }
};

// Calls body(first, codes, length, position) for contiguous codes, or copies that gather them, that
// make up the first `count` elements of a run of a layer with scales: those that share one, or as
// many as there are in a row.
template <bool share_scale, class Body>
void for_each_codes(const Layer& layer, const ElementRun& run, std::int64_t count,
                    Body&& body) noexcept {
  constexpr std::int64_t most_codes = test_sizes ? 4 : 256;
  std::array<std::uint8_t, most_codes> gathered;
  const auto* codes = reinterpret_cast<const std::uint8_t*>(layer.data);
  BlockPosition position(layer, run.index, run.index_step);
  for (std::int64_t done = 0; done < count;) {
    const std::int64_t rest = count - done;
    std::int64_t length = share_scale ? position.shared(rest) : std::min(position.left(), rest);
    const std::uint8_t* from = codes + run.from(done).offset;
    if (run.step != 1) {
      length = std::min(length, most_codes);
      for (std::int64_t i = 0; i < length; ++i) {
        gathered[static_cast<std::size_t>(i)] = from[i * run.step];
      }
      from = gathered.data();
    }
    body(done, from, length, position);
    position.advance(length);
    done += length;
  }
}

// Writes the products of the first `count` elements of a run as doubles.
inline void load_products(const Layer& layer, const ElementRun& run, std::int64_t count,
                          std::uint64_t* to) noexcept {
  const Kernels& kernels = kernels_for(layer.scales->codes);
  for_each_codes<false>(layer, run, count,
                        [&](std::int64_t first, const std::uint8_t* codes, std::int64_t length,
                            const BlockPosition& position) {
                          kernels.magnitudes(codes, length, to + first);
                          position.scale(to + first, length);
                        });
}

// Calls body(first, codes, length, scale) for the parts of the first `count` elements of a run of a
// layer with scales, each of which has one scale.
template <class Body>
void for_each_scale(const Layer& layer, const ElementRun& run, std::int64_t count,
                    Body&& body) noexcept {
  for_each_codes<true>(
      layer, run, count,
      [&](std::int64_t first, const std::uint8_t* codes, std::int64_t length,
          const BlockPosition& position) { body(first, codes, length, position.scale()); });
}

// The first `count` elements of a run, one after the other: where they lie, or as a copy in
// `buffer`.
template <class Element>
const Element* load(const Layer& layer, const ElementRun& run, std::int64_t count,
                    Element* buffer) noexcept {
  if constexpr (sizeof(Element) == sizeof(std::uint64_t)) {
    if (layer.scales) {
      load_products(layer, run, count, buffer);
      return buffer;
    }
  }
  const Element* from = reinterpret_cast<const Element*>(layer.data) + run.offset;
  if (run.step == 1) return from;
  for (std::int64_t i = 0; i < count; ++i) buffer[i] = from[i * run.step];
  return buffer;
}

}  // namespace lampfast::cpu
