// Scales: powers of two that keep the squares of float64 weights in the range of doubles.
#pragma once

#include <vector>

#include "backends.h"

namespace lampfast {

// One for each layer; 1 but for float64. Throws NotFinite.
std::vector<double> find_scales(Backends& backends);

}  // namespace lampfast
