// Apply: one streaming pass that zeroes the pruned weights, or writes the mask of those kept.
#pragma once

#include <vector>

#include "layer.h"

namespace lampfast {

// `sources` are the layers whose magnitudes were selected on; each target has its source's shape.
// Zeroing may have source and target the same, as it has where no importance is given.
void zero(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads);

// Targets are boolean: true = kept.
void mask(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads);

}  // namespace lampfast
