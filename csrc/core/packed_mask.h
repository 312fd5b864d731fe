// Packed masks: one bit per weight.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"

namespace lampfast {

// Bit i % 64 of word i / 64 belongs to the weight at position i, in the order of memory
// (strided_walk.h), so that a dense layer of any memory format is one run. It is set if the weight
// is kept. Bits of the last word beyond the layer mean nothing.
using MaskWord = std::uint64_t;
constexpr int word_weights = 64;

LAMPFAST_HOST_DEVICE constexpr std::int64_t words_of(std::int64_t weights) {
  return (weights + word_weights - 1) / word_weights;
}

using PackedMasks = std::vector<MaskWord*>;  // one per layer, in the memory that the layer lives in

}  // namespace lampfast
