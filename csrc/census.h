// Census: what is zero now, and where the first element is that is not finite.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/parallel.h"
#include "layer.h"

namespace lampfast {

// Each layer as if its zeros had been pruned: `pruned` counts them, and the threshold is the
// smallest other magnitude. Throws NotFinite.
std::vector<Cut> census(const std::vector<Layer>& layers, cpu::Team& team);

struct Element {
  std::size_t layer;
  std::int64_t index;  // row-major
};

std::optional<Element> first_not_finite(const std::vector<Layer>& layers, cpu::Team& team);

}  // namespace lampfast
