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

namespace lampfast {

// The sums of squares of a layer's tiles, times scale^2, by their numbers. Their relative error is
// error_bounds::compensated_sum; small ones may be wrong by more (see there), but are 0 only if
// they are. With Ranking::magnitude all layers have the same scale.
using TileSums = std::unique_ptr<double[]>;

// Exact sums of squares, in units of 2^(2 * least_exponent) (core/key_format.h).
class ExactTiles {
 public:
  virtual ~ExactTiles() = default;
  virtual BigUint sum_of(std::size_t layer, std::int64_t tile) const = 0;
  virtual BigUint sum_of_staying(std::size_t layer, const std::vector<Fate>& fates) const = 0;
};

struct TiledLayers {
  const std::vector<Layer>& layers;
  const std::vector<Tiling>& tilings;
  const std::vector<TileSums>& sums;
  const ExactTiles& exact;
  cpu::ThreadPool& pool;
};

// No fate is open afterwards.
Fates select_tiles(const TiledLayers& tiled, const SelectionSpec& spec);

// The weights of the tiles that are zero throughout, by layer.
std::vector<std::int64_t> sizes_of_zero_tiles(const TiledLayers& tiled);

}  // namespace lampfast
