// Estimate: from a small part of each layer, where the thresholds very probably lie.
#pragma once

#include <vector>

#include "backends.h"
#include "core/intervals.h"
#include "core/selection_spec.h"

namespace lampfast {

// The scales are those of PartitionRequest.
Estimate estimate(Backends& backends, const SelectionSpec& spec, const std::vector<double>& scales);

}  // namespace lampfast
