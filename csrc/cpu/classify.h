// Classifies any number of keys, a block that fits the first-level cache at a time.
#pragma once

#include <algorithm>
#include <cstdint>

#include "cpu/kernels.h"

namespace lampfast::cpu {

// Calls body(block, inside) for each block: what it has on either side of the bracket, and its keys
// inside. The elements that were read may be overwritten then.
template <class Key, class Body>
void classify(Dtype dtype, const Key* elements, std::int64_t length, const Bracket& bracket,
              double scale, Body&& body) {
  const Kernels& kernel = kernels(dtype);
  alignas(64) Key inside[classify_block + classify_slack];
  for (std::int64_t begin = 0; begin < length; begin += classify_block) {
    const auto count = static_cast<int>(std::min<std::int64_t>(classify_block, length - begin));
    body(kernel.classify(elements + begin, count, bracket, scale, inside), inside);
  }
}

}  // namespace lampfast::cpu
