// The estimate for layers in host memory, where any element is at hand: from a sorted sample of
// each layer, and from reads of a larger part at the magnitude where the threshold is thought to
// lie.
#pragma once

#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// For pruning `count` elements in all by the LAMP score. `scales` are those of PartitionRequest.
Estimate estimate_by_sampling(const std::vector<Layer>& layers, const std::vector<double>& scales,
                              std::int64_t count, ThreadPool& pool);

}  // namespace lampfast::cpu
