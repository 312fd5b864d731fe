// Narrow: reads the layers that the bounds leave open again, in smaller intervals.
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

// A layer whose open range has keys that are not told apart yet.
struct OpenLayer {
  std::size_t id;
  KeyInterval needed;  // the keys of the open range, or of the first kept element, or of both
  std::int64_t count;  // of elements that may have these keys
};

std::vector<OpenLayer> find_open(const std::vector<Layer>& layers, const Evidence& evidence,
                                 const std::vector<RankRange>& ranges);

// Reads some of the open layers again. `bounds` are those for which find_open found them. Throws
// WeightsChanged if a read does not find a layer's open range where it was, or the range is still
// open after all of its keys have been sorted.
Evidence narrow(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence);

// The same, but sorts all keys of the open range of every layer, whatever memory that takes.
Evidence sort_open(Backends& backends, const SelectionSpec& spec, const ThresholdBounds& bounds,
                   const std::vector<OpenLayer>& open, const MaskSink& masks, Evidence evidence);

}  // namespace lampfast
