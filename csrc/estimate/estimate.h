// Estimate: finds out, from a small sample of each layer, where the thresholds very probably lie.
#pragma once

#include <vector>

#include "backends.h"
#include "core/intervals.h"
#include "core/selection_spec.h"

namespace lampfast {

Estimate estimate(Backends& backends, const SelectionSpec& spec);

}  // namespace lampfast
