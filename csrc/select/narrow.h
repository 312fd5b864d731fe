// Narrow: reads again, in smaller intervals, the layers that the bounds leave open.
#pragma once

#include <cstddef>
#include <vector>

#include "backends.h"
#include "core/intervals.h"
#include "core/mask_sink.h"
#include "core/selection_spec.h"
#include "select/bound_threshold.h"
#include "select/evidence.h"

namespace lampfast {

// A layer in which not all elements of its open range are told apart.
struct OpenLayer {
  std::size_t id;
  KeyInterval needed;  // holds them, and the first element that is kept, which names the threshold
};

std::vector<OpenLayer> find_open(const std::vector<Layer>& layers,
                                 const std::vector<RankBounds>& rank_bounds,
                                 const std::vector<RankRange>& ranges);

// Learns more of the open layers; `bounds` are those by which they are open.
Evidence narrow(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence);

}  // namespace lampfast
