// Apply: one streaming pass that zeroes the pruned weights, or writes the mask of those kept.
#pragma once

#include <vector>

#include "cpu/parallel.h"
#include "layer.h"
#include "survey.h"

namespace lampfast {

// `sources` are the layers whose magnitudes were selected on; each target has its source's shape.
// Zeroing may have source and target the same, as it has where no importance is given. What the
// selection's surveys know saves reads; without them (none at all) the result is the same.
void zero(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const Chosen& chosen, const std::vector<Cut>& cuts, const std::vector<Survey>& surveys,
          cpu::Team& team);

// Targets are boolean: true = kept. A mask that the survey has written is only completed.
void mask(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const Chosen& chosen, const std::vector<Cut>& cuts, const std::vector<Survey>& surveys,
          cpu::Team& team);

}  // namespace lampfast
