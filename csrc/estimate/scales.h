// Scales: powers of two that keep the squares of float64 weights in the range of doubles.
#pragma once

#include <vector>

#include "backends.h"

namespace lampfast {

// One scale per layer; 1 for all dtypes but float64. Throws NotFinite.
std::vector<double> find_scales(Backends& backends);

}  // namespace lampfast
