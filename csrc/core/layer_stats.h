// Statistics of the weights that a layer has now: how many are zero, and the smallest other
// magnitude.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/intervals.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/layer_threshold.h"

namespace lampfast {

struct LayerStats {
  std::int64_t zeros = 0;
  std::uint64_t smallest = no_key;  // key above 0, if there is one

  void merge(const LayerStats& other) {
    zeros += other.zeros;
    smallest = std::min(smallest, other.smallest);
  }

  // The threshold that prunes exactly the zeros.
  LayerThreshold threshold(Dtype dtype) const {
    const std::uint64_t key = std::min(smallest, not_finite_key(dtype));
    return {key, 0, zeros, magnitude_of(dtype, key)};
  }
};

}  // namespace lampfast
