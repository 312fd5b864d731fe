// Ties are the elements equal to the key of their layer's threshold: where those that are pruned
// end, and those that are kept begin.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/layer_threshold.h"
#include "cpu/candidates.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// The row-major index of the first tie that is kept: that of the one behind the first `ties`, or 0
// if all are kept. If `candidates`, which may be null, hold all ties, the layer need not be read
// again.
std::int64_t first_kept_tie(const Layer& layer, const LayerThreshold& threshold,
                            const std::vector<CandidateSegment>* candidates, ThreadPool& pool);

}  // namespace lampfast::cpu
