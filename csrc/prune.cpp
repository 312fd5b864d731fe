// The algorithm on one screen: Floyd and Rivest's SELECT over the scores of all layers (sample,
// partition around an interval, recurse on what is left), with Shewchuk's adaptive exactness
// (bounds in doubles first, big integers last).
#include "prune.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/check_layers.h"
#include "core/key_format.h"
#include "cpu/tiles.h"
#include "estimate/estimate.h"
#include "estimate/scales.h"
#include "select/bound_threshold.h"
#include "select/evidence.h"
#include "select/first_kept.h"
#include "select/narrow.h"
#include "select/select_exact.h"
#include "select/select_tiles.h"

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
// The loop ends, whether the weights hold still or not. A layer that is no longer open is not read
// again, and its range only shrinks: it stays as it is. After most_turns, the layers that are still
// open have all keys of their open ranges sorted. If the weights hold still, this closes them: each
// interval in a range is then of one key. If a layer is open nevertheless, then somebody has
// changed its weights, which is an error (sort_open and narrow throw WeightsChanged). So this loop
// never reads a layer more than most_turns + 1 times, and which number most_turns is only matters
// for speed.
//
// Most calls take some 3 turns, and the worst that tests have found takes 73: float64 layers with
// magnitudes of all exponents, in which a layer's interval misses again and again.
constexpr int most_turns = 100;

// Bounds the score of the last pruned element, and narrows until all open elements are told apart.
ThresholdBounds resolve(Backends& backends, const SelectionSpec& spec, const MaskSink& masks,
                        Evidence& evidence) {
  ThresholdBounds bounds(backends.layers(), spec, backends.is_sharded());
  for (int turn = 0;; ++turn) {
    bounds = bound_threshold(evidence.rank_bounds, spec, std::move(bounds));
    const auto open = find_open(backends.layers(), evidence, bounds.ranges);
    if (open.empty()) return bounds;
    evidence = (turn < most_turns ? narrow : sort_open)(backends, spec, bounds, open, masks,
                                                        std::move(evidence));
  }
}

std::vector<LayerThreshold> select(Backends& backends, const SelectionSpec& spec,
                                   const MaskSink& masks, StageClock& clock) {
  spec.check(backends.layers());
  clock.start(&CallProfile::estimate);
  const std::vector<double> scales = find_scales(backends);
  const Estimate estimated = estimate(backends, spec);
  clock.start(&CallProfile::partition);
  Evidence evidence = partition(backends, spec, estimated, scales, masks);
  clock.start(&CallProfile::narrow);
  const ThresholdBounds bounds = resolve(backends, spec, masks, evidence);
  clock.start(&CallProfile::select);
  const std::vector<std::int64_t> pruned =
      select_exact(backends, spec, evidence.rank_bounds, bounds.ranges);
  clock.count_misses(evidence.total_misses());
  return thresholds_after(backends, evidence, pruned, masks);
}

std::vector<LayerThreshold> find_zeros(Backends& backends) {
  const std::vector<LayerStats> stats =
      naming_not_finite(backends, [&] { return backends.stats(); });
  std::vector<LayerThreshold> thresholds;
  thresholds.reserve(stats.size());
  for (std::size_t i = 0; i < stats.size(); ++i) {
    thresholds.push_back(stats[i].threshold(backends.layers()[i].dtype));
  }
  return thresholds;
}

// Throws NotFinite if an element is not finite.
void check_finite(Backends& backends) {
  const std::vector<std::uint64_t> largest = backends.largest_keys(backends.all());
  for (std::size_t i = 0; i < largest.size(); ++i) {
    if (largest[i] >= not_finite_key(backends.layers()[i].dtype)) throw NotFinite();
  }
}

// A threshold of which nothing but the count is told.
LayerThreshold only_count(std::int64_t pruned) {
  return {0, 0, pruned, std::numeric_limits<double>::infinity()};
}

std::vector<LayerThreshold> count_pruned(Backends& backends,
                                         const std::vector<GroupPattern>& patterns) {
  naming_not_finite(backends, [&] { check_finite(backends); });
  std::vector<LayerThreshold> counts;
  for (std::size_t i = 0; i < patterns.size(); ++i) {
    counts.push_back(only_count(pruned_by(backends.layers()[i], patterns[i])));
  }
  return counts;
}

void refuse_scales(const std::vector<Layer>& layers) {
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].scales) refuse("layer", i, "scales", "none, as what is stored is looked at");
  }
}

// What the squares of each layer's tiles are multiplied by, squared. All have the same scale if
// they are to be compared with each other.
std::vector<double> scales_of_tiles(Backends& backends, Ranking ranking) {
  std::vector<double> scales = find_scales(backends);
  if (ranking == Ranking::magnitude && !scales.empty()) {
    std::fill(scales.begin(), scales.end(), *std::min_element(scales.begin(), scales.end()));
  }
  return scales;
}

// How the tiles of what lies here are numbered in their layers.
std::vector<TiledPiece> tiled_pieces(const Backends& backends,
                                     const std::vector<BlockShape>& blocks,
                                     const std::vector<TileGrid>& grids,
                                     const std::vector<Tiling>& tilings) {
  std::vector<TiledPiece> pieces;
  for (std::size_t i = 0; i < tilings.size(); ++i) {
    const TileGrid& own = tilings[i].grid;
    if (!backends.is_sharded()) {
      pieces.push_back({i, true, own, TileRange(own)});
      continue;
    }
    const Piece& piece = backends.sharding()->pieces[i];
    const TileRange range(own, grids[piece.layer], backends.layers()[piece.layer],
                          blocks[piece.layer], piece.first);
    pieces.push_back({piece.layer, piece.is_counted, own, range});
  }
  return pieces;
}

// Reads the tiles' sums, and calls body(tiled) with them.
template <class Body>
auto with_tiles(Backends& backends, const std::vector<BlockShape>& blocks, Ranking ranking,
                Body&& body) {
  check_blocks(backends.layers(), blocks);
  check_tiled(backends.pieces());
  const cpu::Tiles tiles(backends.pieces(), backends.of_pieces(blocks), backends.pool());
  const std::vector<TileSums> sums = naming_not_finite(backends, [&] {
    const std::vector<double> scales = backends.of_pieces(scales_of_tiles(backends, ranking));
    std::vector<TileSums> read;
    backends.together([&] { read = tiles.sums(scales); });
    return read;
  });
  std::vector<TileGrid> grids;
  for (std::size_t i = 0; i < blocks.size(); ++i) {
    grids.emplace_back(backends.layers()[i].shape, blocks[i]);
  }
  std::vector<TiledPiece> pieces = tiled_pieces(backends, blocks, grids, tiles.tilings());
  TiledLayers tiled{backends.layers(),
                    std::move(grids),
                    std::move(pieces),
                    sums,
                    tiles,
                    TileExchange(backends.sharding()),
                    backends.pool()};
  return body(tiled);
}

SelectedTiles select_blocks(Backends& backends, const std::vector<BlockShape>& blocks,
                            const SelectionSpec& spec) {
  spec.check(backends.layers());
  return with_tiles(backends, blocks, spec.ranking,
                    [&](TiledLayers& tiled) { return select_tiles(tiled, spec); });
}

std::vector<LayerThreshold> counts_of(const SelectedTiles& selected) {
  std::vector<LayerThreshold> counts;
  for (const std::int64_t pruned : selected.pruned) counts.push_back(only_count(pruned));
  return counts;
}

// Writes what became of the tiles; before that, passes on what goes.
void commit_blocks(Backends& backends, const std::vector<Layer>& targets,
                   const std::vector<BlockShape>& blocks, const SelectedTiles& selected,
                   const ResultSink& sink) {
  std::optional<cpu::TileWriter> writer;
  backends.together([&] {
    writer.emplace(targets, backends.of_pieces(blocks), selected.fates, backends.pool());
    if (sink) sink(counts_of(selected));
  });
  writer->write();
}

void check_packed(const std::vector<Layer>& layers, const PackedMasks& masks) {
  refuse_scales(layers);
  if (masks.size() == layers.size()) return;
  throw std::invalid_argument(std::to_string(layers.size()) + " layers need as many masks, not " +
                              std::to_string(masks.size()));
}

void select_and_commit(const Job& job, const SelectionSpec& spec, const MaskSink& masks,
                       const Machine& machine, CallProfile* profile, const ResultSink& sink) {
  Backends backends(job, machine);
  StageClock clock(profile);
  naming_not_finite(backends, [&] {
    const std::vector<LayerThreshold> thresholds = select(backends, spec, masks, clock);
    clock.start(&CallProfile::commit);
    if (profile != nullptr) profile->elements = backends.counts();
    backends.prepare(thresholds, masks, sink);
    backends.commit();
  });
}

}  // namespace

void prune(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
           const SelectionSpec& spec, const Machine& machine, CallProfile* profile,
           const ResultSink& sink) {
  check_targets(layers, targets, Written::weights);
  select_and_commit({layers, targets}, spec, MaskSink(), machine, profile, sink);
}

void masks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
           const SelectionSpec& spec, const Machine& machine, CallProfile* profile,
           const ResultSink& sink) {
  check_targets(layers, masks, Written::masks);
  select_and_commit({layers, masks}, spec, MaskSink(masks), machine, profile, sink);
}

std::vector<LayerThreshold> group_thresholds(const std::vector<Layer>& layers,
                                             const std::vector<GroupPattern>& patterns,
                                             const Machine& machine) {
  refuse_scales(layers);
  Backends backends({layers, no_targets}, machine);
  check_patterns(backends.layers(), patterns);
  return count_pruned(backends, patterns);
}

void prune_groups(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                  const std::vector<GroupPattern>& patterns, const Machine& machine,
                  const ResultSink& sink) {
  check_targets(layers, targets, Written::weights);
  refuse_scales(layers);
  Backends backends({layers, targets}, machine);
  check_patterns(backends.layers(), patterns);
  const std::vector<LayerThreshold> counts = count_pruned(backends, patterns);
  backends.prepare_groups(patterns, [&] { sink(counts); });
  backends.commit();
}

void mask_groups(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                 const std::vector<GroupPattern>& patterns, const Machine& machine) {
  check_targets(layers, masks, Written::masks);
  refuse_scales(layers);
  Backends backends({layers, masks}, machine);
  check_patterns(backends.layers(), patterns);
  naming_not_finite(backends, [&] { backends.mask_groups(patterns); });
}

std::vector<LayerThreshold> block_thresholds(const std::vector<Layer>& layers,
                                             const std::vector<BlockShape>& blocks,
                                             const SelectionSpec& spec, const Machine& machine) {
  Backends backends({layers, no_targets}, machine);
  return counts_of(select_blocks(backends, blocks, spec));
}

void prune_blocks(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                  const std::vector<BlockShape>& blocks, const SelectionSpec& spec,
                  const Machine& machine, const ResultSink& sink) {
  check_targets(layers, targets, Written::weights);
  Backends backends({layers, targets}, machine);
  commit_blocks(backends, targets, blocks, select_blocks(backends, blocks, spec), sink);
}

void mask_blocks(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                 const std::vector<BlockShape>& blocks, const SelectionSpec& spec,
                 const Machine& machine) {
  check_targets(layers, masks, Written::masks);
  Backends backends({layers, masks}, machine);
  commit_blocks(backends, masks, blocks, select_blocks(backends, blocks, spec), nullptr);
}

std::vector<std::int64_t> sizes_of_zero_blocks(const std::vector<Layer>& layers,
                                               const std::vector<BlockShape>& blocks,
                                               const Machine& machine) {
  Backends backends({layers, no_targets}, machine);
  return with_tiles(backends, blocks, Ranking::per_layer,
                    [](TiledLayers& tiled) { return sizes_of_zero_tiles(tiled); });
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
  return find_zeros(backends);
}

void prune_zeros(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                 const Machine& machine, const ResultSink& sink) {
  check_targets(layers, targets, Written::weights);
  Backends backends({layers, targets}, machine);
  const std::vector<LayerThreshold> thresholds = find_zeros(backends);
  backends.prepare(thresholds, MaskSink(), sink);
  backends.commit();
}

void score(const std::vector<Layer>& layers, const std::vector<Layer>& scores,
           const Machine& machine) {
  check_targets(layers, scores, Written::scores);
  Backends backends({layers, scores}, machine);
  naming_not_finite(backends, [&] { backends.score(); });
}

std::optional<ElementIndex> first_not_finite(const std::vector<Layer>& layers,
                                             const Machine& machine) {
  return Backends({layers, no_targets}, machine).first_not_finite();
}

void pack(const std::vector<Layer>& layers, const PackedMasks& masks, const Machine& machine) {
  check_packed(layers, masks);
  Backends({layers, no_targets}, machine).pack(masks);
}

void apply_packed_masks(const std::vector<Layer>& layers, const PackedMasks& masks,
                        const Machine& machine) {
  check_packed(layers, masks);
  Backends({layers, no_targets}, machine).apply_packed_masks(masks);
}

}  // namespace lampfast
