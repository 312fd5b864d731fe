// How many candidates (stored keys inside the intervals) a call may keep, in host memory or a
// GPU's.
#pragma once

#include <cstdint>

#include "core/test_sizes.h"

namespace lampfast {

// The bytes that the candidates of layers of this total size may take. A call may use 5% of the
// weights' bytes beyond its output; 3% are for candidates.
constexpr std::int64_t candidate_bytes(std::int64_t layer_bytes) { return layer_bytes / 100 * 3; }

// The most candidates that a layer of this size may store. An estimate leaves far fewer inside an
// interval unless many elements are equal; such a layer's ties would use up the budget of all the
// others.
constexpr std::int64_t candidate_share(std::int64_t layer_size) {
  return layer_size / 16 + (test_sizes ? 16 : 1 << 13);
}

}  // namespace lampfast
