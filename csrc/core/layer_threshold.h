// A layer's threshold: which of its elements are pruned.
#pragma once

#include <cstdint>

namespace lampfast {

// Prunes the elements whose key (key_format.h) is smaller than `key` and, of those equal to it (the
// ties), the first `ties` in row-major order. `key` is that of the smallest kept element, or the
// first key that is not finite if none is kept.
struct LayerThreshold {
  std::uint64_t key;
  std::int64_t ties;
  std::int64_t pruned;
  double magnitude;  // of the key; infinity if no element is kept
};

}  // namespace lampfast
