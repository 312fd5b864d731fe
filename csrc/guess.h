// Guess: from a part of each layer, a bracket that very probably holds its threshold.
#pragma once

#include <cstdint>
#include <vector>

#include "cpu/parallel.h"
#include "layer.h"

namespace lampfast {

struct Guess {
  std::vector<Bracket> brackets;  // one per layer
  ScoreRange scores;
};

// For pruning `count` elements in all. `scales` as in survey.h. A guess that misses costs another
// read of a layer, never the right answer.
Guess guess(const std::vector<Layer>& layers, const std::vector<double>& scales, std::int64_t count,
            cpu::Team& team);

}  // namespace lampfast
