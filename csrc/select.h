// Select: each layer's exact answer to "which `count` elements of all layers go first".
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace lampfast {

// One cut per layer, together exactly `count` elements. Throws NotFinite; needs
// 0 <= count <= the sizes' sum.
std::vector<Cut> select(const std::vector<Layer>& layers, std::int64_t count, int threads);

}  // namespace lampfast
