// Where the ties that are pruned end and those that are kept begin.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/layer_threshold.h"
#include "cpu/candidates.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {

// The row-major index from which on the elements equal to the threshold's key are kept: that of the
// one after the first `ties`, and 0 if all are kept. A layer's candidates, where they hold all such
// elements (null: they do not), save reading it again.
std::int64_t first_kept_tie(const Layer& layer, const LayerThreshold& threshold,
                            const std::vector<CandidateSegment>* candidates, ThreadPool& pool);

}  // namespace lampfast::cpu
