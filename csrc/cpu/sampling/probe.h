// Counts the part of a layer that is drawn on either side of a magnitude.
#pragma once

#include <cstdint>

#include "core/layer.h"
#include "cpu/chunks.h"
#include "cpu/sampling/blocks.h"
#include "cpu/sampling/margins.h"

namespace lampfast::cpu {

// Of all elements in a chunk of the layer, in one group. `scale` is that of PartitionRequest.
Split probe_all(const Layer& layer, const Chunk& chunk, std::uint64_t key, double scale);

// Of the blocks [first, last).
Split probe(const Layer& layer, const Blocks& blocks, std::int64_t first, std::int64_t last,
            std::uint64_t key, double scale);

}  // namespace lampfast::cpu
