// Scores: the LAMP score of every element, which unlike pruning does need each layer's order.
#pragma once

#include <vector>

#include "cpu/parallel.h"
#include "layer.h"

namespace lampfast {

// Outputs are row-major, float64 for float64 layers and float32 for all others. Each score is
// within one unit in the last place of the exact value. Throws NotFinite.
void score(const std::vector<Layer>& layers, const std::vector<Layer>& outputs,
           const Chosen& chosen, cpu::Team& team);

}  // namespace lampfast
