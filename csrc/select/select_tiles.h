// Selects the tiles (core/tiling.h) that go, from their sums of squares: those that come first in
// the order of (score, layer, sum of squares, number), as long as their weights fit the count.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "backends.h"
#include "core/big_uint.h"
#include "core/layer.h"
#include "core/selection_spec.h"
#include "core/tiling.h"
#include "exchange_tiles.h"

namespace lampfast {

// The sums of squares of a piece's tiles, times scale^2, by their numbers there. Their relative
// error is error_bounds::compensated_sum; small ones may be wrong by more (see there), but are 0
// only if they are. With Ranking::magnitude all layers have the same scale.
using TileSums = std::unique_ptr<double[]>;

// Exact sums of squares, in units of 2^(2 * least_exponent) (core/key_format.h), by piece.
class ExactTiles {
 public:
  virtual ~ExactTiles() = default;
  virtual BigUint sum_of(std::size_t piece, std::int64_t tile) const = 0;
  virtual BigUint sum_of_staying(std::size_t piece, const std::vector<Fate>& fates) const = 0;
};

// What lies here of a layer: all of it, or of a sharded layer a piece (sharding.h).
struct TiledPiece {
  std::size_t layer;
  bool is_counted;
  const TileGrid& grid;  // of the piece
  TileRange range;
};

struct TiledLayers {
  const std::vector<Layer>& layers;  // of which only dtypes matter
  std::vector<TileGrid> grids;       // of whole layers
  std::vector<TiledPiece> pieces;
  const std::vector<TileSums>& sums;  // by piece
  const ExactTiles& exact;
  TileExchange exchange;
  cpu::ThreadPool& pool;
};

struct SelectedTiles {
  Fates fates;                       // by piece; none is open
  std::vector<std::int64_t> pruned;  // by layer: the weights of the tiles that go
};

SelectedTiles select_tiles(TiledLayers& tiled, const SelectionSpec& spec);

// The weights of the tiles that are zero throughout, by layer.
std::vector<std::int64_t> sizes_of_zero_tiles(TiledLayers& tiled);

}  // namespace lampfast
