// Resolve: among the few elements that the bounds leave open, find the last pruned one exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "goal.h"
#include "layer.h"
#include "locate.h"
#include "places.h"
#include "profile.h"

namespace lampfast {

// The steps that hold the windows must be runs. How many elements of each window are among the
// first `count` of all windows in the order of the contract: exact score (or magnitude), then layer
// position, then the layer's own order.
std::vector<std::int64_t> resolve(Places& places, Ranking ranking,
                                  const std::vector<Profile>& profiles,
                                  const std::vector<Window>& windows, std::int64_t count);

}  // namespace lampfast
