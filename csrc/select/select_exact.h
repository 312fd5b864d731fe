// Select: finds, exactly, the last pruned element among the few that the bounds leave open.
#pragma once

#include <cstdint>
#include <vector>

#include "backends.h"
#include "core/selection_spec.h"
#include "select/bound_threshold.h"
#include "select/rank_bounds.h"

namespace lampfast {

// Returns how many elements of each layer are pruned. Every interval that holds part of an open
// range must be of one key. Elements are ordered by exact score (or magnitude), then by layer id,
// then in the layer's own order.
std::vector<std::int64_t> select_exact(Backends& backends, const SelectionSpec& spec,
                                       const std::vector<RankBounds>& rank_bounds,
                                       const std::vector<RankRange>& ranges);

}  // namespace lampfast
