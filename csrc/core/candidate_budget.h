// How many candidates a call may store, in host memory or a GPU's.
#pragma once

#include <cstdint>

#include "core/test_sizes.h"

namespace lampfast {

// Bytes for the candidates of layers that take so many bytes: of the 5% that a call may take beyond
// its output, 3% are for candidates.
constexpr std::int64_t candidate_bytes(std::int64_t layer_bytes) { return layer_bytes / 100 * 3; }

// How many candidates a layer of this size may store. One with more inside its interval than an
// estimate ever leaves there by chance has ties, which would take the room of all other layers'.
constexpr std::int64_t candidate_share(std::int64_t layer_size) {
  return layer_size / 16 + (test_sizes ? 16 : 1 << 13);
}

}  // namespace lampfast
