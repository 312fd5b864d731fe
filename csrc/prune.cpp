// The algorithm on one screen: Floyd and Rivest's SELECT over the scores of all layers (sample,
// partition around an interval, recurse on what is left), with Shewchuk's adaptive exactness
// (bounds in doubles first, big integers last).
#include "prune.h"

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "estimate/estimate.h"
#include "estimate/scales.h"
#include "select/bound_threshold.h"
#include "select/evidence.h"
#include "select/narrow.h"
#include "select/select_exact.h"

namespace lampfast {
namespace {

const std::vector<Layer> no_targets;

// Runs body(). If it meets an element that is not finite, finds the first such element and throws
// again with its index.
template <class Body>
auto naming_not_finite(Backends& backends, Body&& body) {
  try {
    return body();
  } catch (const NotFinite&) {
    throw NotFinite(backends.first_not_finite());
  }
}

// A wrong estimate costs a read but never the answer. An interval only decides where a read stores
// keys, counts them in bins or adds them up: whichever interval it is, the counts and sums found
// below, inside and above it are true, and so are the bounds that follow from them.
//
// The loop ends: every turn reads all open layers, or those whose interval missed, in a smaller
// interval; or reads the same interval again and also records each bin's smallest and largest key;
// or sorts all keys inside, after which nothing is open.
//
// It takes some dozens of turns at most, and a few more for each layer whose interval misses. Only
// weights that another thread changes meanwhile could keep it busy for longer: that is an error.
constexpr std::size_t most_turns(std::size_t layers) { return 400 + 10 * layers; }

std::vector<LayerThreshold> select(Backends& backends, const SelectionSpec& spec,
                                   const MaskSink& masks, StageClock& clock) {
  spec.check(backends.layers());
  clock.start(&CallProfile::estimate);
  const std::vector<double> scales = find_scales(backends);
  const Estimate estimated = estimate(backends, spec, scales);
  clock.start(&CallProfile::partition);
  Evidence evidence = partition(backends, spec, estimated, scales, masks);
  clock.start(&CallProfile::narrow);
  ThresholdBounds bounds(backends.layers(), spec);
  for (std::size_t turn = 0;; ++turn) {
    if (turn == most_turns(backends.layers().size())) {
      throw std::runtime_error(
          "the weights keep changing while they are read, so they cannot be ranked; let no other "
          "thread change them during the call");
    }
    bounds = bound_threshold(evidence.rank_bounds, spec, std::move(bounds));
    const auto open = find_open(backends.layers(), evidence.rank_bounds, bounds.ranges);
    if (open.empty()) break;
    evidence = narrow(backends, spec, bounds, open, masks, std::move(evidence));
  }
  clock.count_misses(evidence.total_misses());
  clock.start(&CallProfile::select);
  return select_exact(backends, spec, evidence.rank_bounds, bounds.ranges);
}

void check_mask_count(const std::vector<Layer>& layers, const PackedMasks& masks) {
  if (masks.size() == layers.size()) return;
  throw std::invalid_argument(std::to_string(layers.size()) + " layers need as many masks, not " +
                              std::to_string(masks.size()));
}

std::vector<LayerThreshold> select_and_commit(const Job& job, const SelectionSpec& spec,
                                              const MaskSink& masks, const Machine& machine,
                                              CallProfile* profile) {
  Backends backends(job, machine);
  StageClock clock(profile);
  return naming_not_finite(backends, [&] {
    std::vector<LayerThreshold> thresholds = select(backends, spec, masks, clock);
    clock.start(&CallProfile::commit);
    backends.commit(thresholds, masks);
    if (profile != nullptr) profile->elements = backends.counts();
    return thresholds;
  });
}

}  // namespace

std::vector<LayerThreshold> prune(const std::vector<Layer>& layers,
                                  const std::vector<Layer>& targets, const SelectionSpec& spec,
                                  const Machine& machine, CallProfile* profile) {
  return select_and_commit({layers, targets}, spec, MaskSink(), machine, profile);
}

std::vector<LayerThreshold> masks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                                  const SelectionSpec& spec, const Machine& machine,
                                  CallProfile* profile) {
  return select_and_commit({layers, masks}, spec, MaskSink(masks), machine, profile);
}

std::vector<LayerThreshold> thresholds(const std::vector<Layer>& layers, const SelectionSpec& spec,
                                       const Machine& machine) {
  Backends backends({layers, no_targets}, machine);
  StageClock clock(nullptr);
  return naming_not_finite(backends, [&] { return select(backends, spec, MaskSink(), clock); });
}

std::vector<LayerThreshold> zero_thresholds(const std::vector<Layer>& layers,
                                            const Machine& machine) {
  Backends backends({layers, no_targets}, machine);
  const std::vector<LayerStats> stats =
      naming_not_finite(backends, [&] { return backends.stats(); });
  std::vector<LayerThreshold> thresholds;
  thresholds.reserve(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) {
    thresholds.push_back(stats[i].threshold(layers[i].dtype));
  }
  return thresholds;
}

void score(const std::vector<Layer>& layers, const std::vector<Layer>& scores,
           const Machine& machine) {
  Backends backends({layers, scores}, machine);
  naming_not_finite(backends, [&] { backends.score(); });
}

std::optional<ElementIndex> first_not_finite(const std::vector<Layer>& layers,
                                             const Machine& machine) {
  return Backends({layers, no_targets}, machine).first_not_finite();
}

void pack(const std::vector<Layer>& layers, const PackedMasks& masks, const Machine& machine) {
  check_mask_count(layers, masks);
  Backends({layers, no_targets}, machine).pack(masks);
}

void apply_packed_masks(const std::vector<Layer>& layers, const PackedMasks& masks,
                        const Machine& machine) {
  check_mask_count(layers, masks);
  Backends({layers, no_targets}, machine).apply_packed_masks(masks);
}

}  // namespace lampfast
