// A mask of one bit a weight.
#pragma once

#include <cstdint>
#include <vector>

#include "core/host_device.h"

namespace lampfast {

// Bit i % 64 of word i / 64 is for the weight at position i, in the order in which walk.h visits
// the layer's memory, so that a dense layer of any memory format is one run; it is set where the
// weight is kept. What the last word has bits for beyond the layer means nothing.
using MaskWord = std::uint64_t;
constexpr int word_weights = 64;

LAMPFAST_HOST_DEVICE constexpr std::int64_t words_of(std::int64_t weights) {
  return (weights + word_weights - 1) / word_weights;
}

using PackedMasks = std::vector<MaskWord*>;  // one for each layer, where the layer lives

}  // namespace lampfast
