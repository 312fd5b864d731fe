// The engine's functions. Those that rank weights (all but first_not_finite, pack and
// apply_packed_masks) throw NotFinite, with the index of the first such element, if a layer has NaN
// or infinity. No weight has changed then; masks and scores may be partly written.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "backends.h"
#include "core/call_profile.h"
#include "core/group_pattern.h"
#include "core/layer.h"
#include "core/layer_threshold.h"
#include "core/not_finite.h"
#include "core/packed_mask.h"
#include "core/selection_spec.h"
#include "core/tiling.h"

namespace lampfast {

// Receives the thresholds of all layers, after everything else that may fail and before anything is
// written. If it throws, nothing is.
using ResultSink = std::function<void(const std::vector<LayerThreshold>&)>;

// Selects elements by the magnitudes in `layers` and zeroes the elements with the same indices in
// `targets`, which may be the layers themselves.
void prune(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
           const SelectionSpec& spec, const Machine& machine, CallProfile* profile,
           const ResultSink& sink);

// Writes one mask per layer: true where a weight is kept.
void masks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
           const SelectionSpec& spec, const Machine& machine, CallProfile* profile,
           const ResultSink& sink);

// How many elements of each layer its pattern prunes. Of the thresholds, which differ from group to
// group, nothing else is told.
std::vector<LayerThreshold> group_thresholds(const std::vector<Layer>& layers,
                                             const std::vector<GroupPattern>& patterns,
                                             const Machine& machine);

// Zeroes all but the largest elements of each group, or writes the masks that keep them. The sink
// receives group_thresholds.
void prune_groups(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                  const std::vector<GroupPattern>& patterns, const Machine& machine,
                  const ResultSink& sink);
void mask_groups(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                 const std::vector<GroupPattern>& patterns, const Machine& machine);

// The same with blocks (core/tiling.h) of layers in host memory: tiles go in the order of their
// scores as long as their weights fit the counts.
std::vector<LayerThreshold> block_thresholds(const std::vector<Layer>& layers,
                                             const std::vector<BlockShape>& blocks,
                                             const SelectionSpec& spec, const Machine& machine);
void prune_blocks(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                  const std::vector<BlockShape>& blocks, const SelectionSpec& spec,
                  const Machine& machine, const ResultSink& sink);
void mask_blocks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                 const std::vector<BlockShape>& blocks, const SelectionSpec& spec,
                 const Machine& machine);

// How many weights of each layer are in tiles that are zero throughout.
std::vector<std::int64_t> sizes_of_zero_blocks(const std::vector<Layer>& layers,
                                               const std::vector<BlockShape>& blocks,
                                               const Machine& machine);

// Returns the thresholds by which prune would prune; writes nothing.
std::vector<LayerThreshold> thresholds(const std::vector<Layer>& layers, const SelectionSpec& spec,
                                       const Machine& machine);

// The thresholds that prune exactly the elements that are zero now.
std::vector<LayerThreshold> zero_thresholds(const std::vector<Layer>& layers,
                                            const Machine& machine);

// Zeroes the elements of `targets` with the same indices as those that are zero in `layers`.
void prune_zeros(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                 const Machine& machine, const ResultSink& sink);

// Writes the LAMP score of every element; see Backend::score.
void score(const std::vector<Layer>& layers, const std::vector<Layer>& scores,
           const Machine& machine);

std::optional<ElementIndex> first_not_finite(const std::vector<Layer>& layers,
                                             const Machine& machine);

// Packed masks have one bit per weight (core/packed_mask.h). pack sets the bits of the weights that
// are not zero; apply_packed_masks zeroes the weights whose bits are clear.
void pack(const std::vector<Layer>& layers, const PackedMasks& masks, const Machine& machine);
void apply_packed_masks(const std::vector<Layer>& layers, const PackedMasks& masks,
                        const Machine& machine);

}  // namespace lampfast
