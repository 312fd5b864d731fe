// Guess: from a small sample of each layer, a bracket that very probably holds its threshold.
#pragma once

#include <cstdint>
#include <vector>

#include "layer.h"

namespace lampfast {

// A bracket per layer for pruning `count` elements in all. `scales` as in survey.h. Deterministic.
// A bracket that misses costs another read of its layer, never the right answer.
std::vector<Bracket> guess(const std::vector<Layer>& layers, const std::vector<double>& scales,
                           std::int64_t count, int threads);

}  // namespace lampfast
