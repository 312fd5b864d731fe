// Which elements of a layer are drawn to tell of the whole: a block from each of equal parts, at a
// scrambled place in it, so that no period of the weights can hide from the draw.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/layer.h"
#include "core/strata.h"
#include "core/strided_walk.h"

namespace lampfast::cpu {

// Blocks are dealt to groups in pairs: how much the two groups of a pair differ tells how far the
// draw may be off. Blocks that follow each other meet in a pair, or what differs between the rows
// of a layer, all of which the draw sees, would pass for an error.
constexpr int pair_bits = 4;
constexpr std::size_t pairs = std::size_t{1} << pair_bits;
constexpr int group_bits = pair_bits + 1;
constexpr std::size_t groups = 2 * pairs;

class Blocks {
 public:
  // About `wanted` elements of a layer of `size`, in blocks of at most `longest`.
  Blocks(std::int64_t size, std::int64_t wanted, std::int64_t longest)
      : size_(size),
        length_(std::clamp<std::int64_t>(wanted / static_cast<std::int64_t>(groups), 1, longest)),
        places_((size + length_ - 1) / length_),
        count_(std::min((wanted + length_ - 1) / length_, places_)) {}

  std::int64_t count() const { return count_; }
  bool is_whole() const { return count_ == places_; }

  // The positions of a block's elements, in the visiting order of strided_walk.h.
  std::int64_t begin(std::int64_t block) const {
    const std::int64_t first = part_begin(places_, count_, block);
    const std::int64_t places = part_begin(places_, count_, block + 1) - first;
    return (first + scramble(static_cast<std::uint64_t>(block), places)) * length_;
  }
  std::int64_t end(std::int64_t begin) const { return std::min(begin + length_, size_); }

  // Which of the two groups of its pair a block goes to is scrambled too: in a layer that is sorted
  // all first ones would be smaller.
  static std::size_t group(std::int64_t block) {
    const auto seed = static_cast<std::uint64_t>(block / 2);
    const auto swap = static_cast<std::size_t>((seed * 0x9e3779b97f4a7c15) >> 63);
    return (seed % pairs) * 2 + (static_cast<std::size_t>(block % 2) ^ swap);
  }

 private:
  std::int64_t size_;
  std::int64_t length_;
  std::int64_t places_;
  std::int64_t count_;
};

// Calls body(group, elements, step, length) for evenly spaced elements that make up the blocks
// [first, last).
template <class Element, class Body>
void for_each_drawn(const Layer& layer, const Element* data, const Blocks& blocks,
                    std::int64_t first, std::int64_t last, Body&& body) {
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  constexpr std::int64_t ahead = 16;  // a draw waits for the memory, so ask early
  for (std::int64_t block = first; block < last; ++block) {
    if (walk.is_one_run() && block + ahead < last) {
      const std::int64_t soon = blocks.begin(block + ahead);
      for (std::int64_t i = soon; i < blocks.end(soon); i += 64 / std::int64_t{sizeof(Element)}) {
        __builtin_prefetch(data + i * step);
      }
    }
    const std::int64_t begin = blocks.begin(block);
    walk.runs(begin, blocks.end(begin), [&](auto, const auto& offsets, std::int64_t length) {
      body(Blocks::group(block), data + offsets[0], step, length);
    });
  }
}

}  // namespace lampfast::cpu
