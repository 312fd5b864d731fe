// The engine's calls. All of them throw NotFinite, with the first such element's index, where a
// layer has NaN or infinity, and then have changed nothing.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "backends.h"
#include "core/layer.h"
#include "core/layer_threshold.h"
#include "core/not_finite.h"
#include "core/packed_mask.h"
#include "core/selection_spec.h"
#include "core/stage_times.h"

namespace lampfast {

// Zeroes the targets' weights that the spec selects by the magnitudes of the layers, which may be
// the targets themselves.
std::vector<LayerThreshold> prune(const std::vector<Layer>& layers,
                                  const std::vector<Layer>& targets, const SelectionSpec& spec,
                                  const Machine& machine, StageTimes* times);

// Writes masks: true where a weight is kept.
std::vector<LayerThreshold> masks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                                  const SelectionSpec& spec, const Machine& machine,
                                  StageTimes* times);

// What prune would answer; writes nothing.
std::vector<LayerThreshold> thresholds(const std::vector<Layer>& layers, const SelectionSpec& spec,
                                       const Machine& machine);

// The layers' answers as if their zeros were what is pruned.
std::vector<LayerThreshold> zero_thresholds(const std::vector<Layer>& layers,
                                            const Machine& machine);

// Writes the LAMP score of every element, as Backend::score says.
void score(const std::vector<Layer>& layers, const std::vector<Layer>& scores,
           const Machine& machine);

std::optional<ElementIndex> first_not_finite(const std::vector<Layer>& layers,
                                             const Machine& machine);

// Masks of one bit a weight (packed_mask.h): of what is not zero, and back to zeros.
void pack(const std::vector<Layer>& layers, const PackedMasks& masks, const Machine& machine);
void apply_packed_masks(const std::vector<Layer>& layers, const PackedMasks& masks,
                        const Machine& machine);

}  // namespace lampfast
