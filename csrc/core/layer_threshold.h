// A layer's answer: which of its elements are pruned.
#pragma once

#include <cstdint>

namespace lampfast {

// Elements whose magnitude key (key_format.h) is smaller than `key` are pruned, and of those equal
// to it the first `ties` in row-major order. `key` is that of the smallest kept element, or the
// first key that is not finite where none is kept.
struct LayerThreshold {
  std::uint64_t key;
  std::int64_t ties;
  std::int64_t pruned;
  double magnitude;  // that the key stands for; infinity where none is kept
};

}  // namespace lampfast
