// Keep: which weights are not zero, one bit each, and zero again wherever the bit is clear.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "layer.h"
#include "packed_mask.h"

namespace lampfast {

// Writes the chosen layers' masks: a bit is set where the weight is neither 0 nor -0. Subnormals,
// infinities and NaN are not zero.
void pack(const std::vector<Layer>& layers, const Chosen& chosen, const PackedMasks& masks,
          cpu::Team& team);

// Weights whose bit is clear become +0; no other byte is changed.
void keep(const std::vector<Layer>& layers, const Chosen& chosen, const PackedMasks& masks,
          cpu::Team& team);

}  // namespace lampfast
