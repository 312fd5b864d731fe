// Select: among the few elements that the bounds leave open, the last pruned one, exactly.
#pragma once

#include <cstdint>
#include <vector>

#include "backends.h"
#include "core/layer_threshold.h"
#include "core/selection_spec.h"
#include "select/bound_threshold.h"
#include "select/rank_bounds.h"

namespace lampfast {

// The layers' answers. The intervals that hold the open ranges must be of one key each. Elements
// are in the order of the contract: exact score (or magnitude), then layer position, then the
// layer's own order.
std::vector<LayerThreshold> select_exact(Backends& backends, const SelectionSpec& spec,
                                         const std::vector<RankBounds>& rank_bounds,
                                         const std::vector<RankRange>& ranges);

}  // namespace lampfast
