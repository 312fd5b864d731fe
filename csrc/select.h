// Select: each layer's exact answer to "which `count` elements of all layers go first".
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"
#include "places.h"
#include "stages.h"
#include "survey.h"

namespace lampfast {

// One cut per layer, and what the survey left that helps to apply it.
struct Selected {
  std::vector<Cut> cuts;
  std::vector<Survey> surveys;
};

// The cuts have together exactly `count` elements. Targets that are masks are written as far as a
// single read of the weights allows: see Survey::fused. Throws NotFinite; needs 0 <= count <= the
// sizes' sum.
Selected select(Places& places, std::int64_t count, Stages* stages);

}  // namespace lampfast
