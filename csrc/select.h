// Select: each layer's exact answer to "which elements go first".
#pragma once

#include <cstdint>
#include <vector>

#include "goal.h"
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

// The cuts have exactly as many elements as the goal says. Targets that are masks are written as
// far as a single read of the weights allows: see Survey::fused. Throws NotFinite, and
// std::invalid_argument where the layers have fewer elements than the goal's counts.
Selected select(Places& places, const Goal& goal, Stages* stages);

}  // namespace lampfast
