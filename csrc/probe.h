// Counts the part of a layer that is drawn on either side of a magnitude.
#pragma once

#include <cstdint>

#include "blocks.h"
#include "chunks.h"
#include "layer.h"
#include "margins.h"

namespace lampfast {

// Of all elements in a chunk of the layer, in one group. `scale` as in survey.h.
Split probe_all(const Layer& layer, const Chunk& chunk, std::uint64_t key, double scale);

// Of the blocks [first, last).
Split probe(const Layer& layer, const Blocks& blocks, std::int64_t first, std::int64_t last,
            std::uint64_t key, double scale);

}  // namespace lampfast
