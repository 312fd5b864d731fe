// Classifies any number of elements, in blocks that fit the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {

// A kernel may read an element twice: to compare it, and to store its key. Another thread that
// trains meanwhile may change it in between. Because bins are indexed by these keys, one that has
// left the interval is replaced by its low end.
template <class Key>
void keep_inside(Key* keys, int count, const KeyInterval& interval) {
  const auto low = static_cast<Key>(interval.low);
  const auto width = static_cast<Key>(interval.high - interval.low);
  for (int i = 0; i < count; ++i) keys[i] = static_cast<Key>(keys[i] - low) < width ? keys[i] : low;
}

// Calls body(block, inside) for each block: what it has on either side of the interval, and the
// keys that it has inside. Writes every element's mask byte (kernels.h) to `kept`, unless that is
// null.
template <class Key, class Body>
void classify(Dtype dtype, const Key* elements, std::int64_t length, const KeyInterval& interval,
              double scale, std::uint8_t* kept, Body&& body) {
  const Kernels& kernel = kernels_for(dtype);
  alignas(64) Key inside[classify_block + classify_slack];
  for (std::int64_t begin = 0; begin < length; begin += classify_block) {
    const auto count = static_cast<int>(std::min<std::int64_t>(classify_block, length - begin));
    std::uint8_t* kept_here = kept == nullptr ? nullptr : kept + begin;
    const Classified block =
        kernel.classify(elements + begin, count, interval, scale, inside, kept_here);
    keep_inside(inside, block.inside, interval);
    body(block, inside);
  }
}

}  // namespace lampfast::cpu
