// Classifies any number of elements, in blocks that fit the first-level cache.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {

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
    body(block, inside);
  }
}

}  // namespace lampfast::cpu
