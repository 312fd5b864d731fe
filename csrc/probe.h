// Counts the part of a layer that is drawn on either side of a magnitude.
#pragma once

#include <cstdint>

#include "blocks.h"
#include "layer.h"
#include "margins.h"

namespace lampfast {

// Of the blocks [first, last). `scale` as in survey.h.
Split probe(const Layer& layer, const Blocks& blocks, std::int64_t first, std::int64_t last,
            std::uint64_t key, double scale);

// Of all elements, in one group.
Split probe_all(const Layer& layer, std::uint64_t key, double scale);

}  // namespace lampfast
