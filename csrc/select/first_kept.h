// The end of select: each layer's first kept element, whose key is the layer's threshold.
#pragma once

#include <cstdint>
#include <vector>

#include "backends.h"
#include "core/layer_threshold.h"
#include "core/mask_sink.h"
#include "select/evidence.h"

namespace lampfast {

// The thresholds that prune so many elements of each layer. Where the first kept element lies in an
// interval of several keys, it must be the first one there. Throws WeightsChanged.
std::vector<LayerThreshold> thresholds_after(Backends& backends, const Evidence& evidence,
                                             const std::vector<std::int64_t>& pruned,
                                             const MaskSink& masks);

}  // namespace lampfast
