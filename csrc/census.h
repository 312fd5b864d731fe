// Census: what is zero now, and where the first element is that is not finite.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "cpu/parallel.h"
#include "layer.h"

namespace lampfast {

// The chosen layers as if their zeros had been pruned: `pruned` counts them, and the threshold is
// the smallest other magnitude. Throws NotFinite.
void census(const std::vector<Layer>& layers, const Chosen& chosen, std::vector<Cut>& cuts,
            cpu::Team& team);

struct Element {
  std::size_t layer;
  std::int64_t index;  // row-major

  bool operator<(const Element& other) const {
    return layer < other.layer || (layer == other.layer && index < other.index);
  }
};

std::optional<Element> first_not_finite(const std::vector<Layer>& layers, const Chosen& chosen,
                                        cpu::Team& team);

}  // namespace lampfast
