// Blocks: a layer as a matrix of outputs and inputs, cut into tiles whose weights go together.
//
// The rows are the outputs. The columns are the inputs, and for each input the positions of the
// kernel, in the order of the layer's other dimensions: a convolution's weight unfolds as
// weight.reshape(outputs, inputs * height * width). Tiles are numbered row by row; those at the end
// of a row or a column may be smaller.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

// What becomes of a tile.
enum class Fate : std::uint8_t { stays, goes, open };

// The fates of each layer's tiles, by their numbers.
using Fates = std::vector<std::vector<Fate>>;

// What a caller asks for: the extents of a tile, and which axis the inputs have (0 or 1).
struct BlockShape {
  std::int64_t rows;
  std::int64_t columns;
  int axis;
};

inline void check_blocks(const std::vector<Layer>& layers, const std::vector<BlockShape>& blocks) {
  if (blocks.size() != layers.size()) {
    throw std::invalid_argument(std::to_string(layers.size()) +
                                " layers need as many blocks, not " +
                                std::to_string(blocks.size()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const BlockShape& block = blocks[i];
    const auto last = static_cast<int>(std::min<std::size_t>(layers[i].shape.size(), 2)) - 1;
    if (block.rows < 1 || block.columns < 1 || block.axis < 0 || block.axis > std::max(last, 0)) {
      throw std::invalid_argument(
          "block " + std::to_string(i) + " is of " + std::to_string(block.rows) + " x " +
          std::to_string(block.columns) + " with the inputs in axis " + std::to_string(block.axis) +
          " of " + std::to_string(layers[i].shape.size()));
    }
    if (layers[i].device != Layer::in_host_memory || layers[i].scales) {
      throw std::invalid_argument("layer " + std::to_string(i) +
                                  " is on a GPU or has scales, and blocks are for neither");
    }
  }
}

// One direction of the matrix: the axes that it has, and how tiles lie along it.
struct TileSide {
  std::vector<std::int64_t> shape;
  Strides strides;
  std::int64_t extent = 1;
  std::int64_t length = 1;  // of a tile
  std::int64_t tiles = 1;
  std::int64_t number_step = 1;  // from the number of a tile to that of the next along this side

  std::int64_t begin(std::int64_t tile) const { return tile * length; }
  std::int64_t end(std::int64_t tile) const { return std::min((tile + 1) * length, extent); }
};

// How the tiles of a layer lie in its memory. Outer and inner are rows and columns, or the other
// way round where columns would take larger steps through the memory.
class Tiling {
 public:
  Tiling(const Layer& layer, const BlockShape& block) {
    const std::size_t dimensions = layer.shape.size();
    TileSide rows, columns;
    const auto add = [&](TileSide& side, std::size_t axis) {
      side.shape.push_back(layer.shape[axis]);
      side.strides.push_back(layer.strides[axis]);
      side.extent *= layer.shape[axis];
    };
    const auto inputs = static_cast<std::size_t>(block.axis);
    if (dimensions > 1) add(rows, 1 - inputs);
    if (dimensions > 0) add(columns, inputs);
    for (std::size_t axis = 2; axis < dimensions; ++axis) add(columns, axis);
    cut(rows, block.rows);
    cut(columns, block.columns);
    rows.number_step = columns.tiles;
    columns_ = columns.tiles;
    last_row_ = (rows.tiles - 1) * columns.tiles;
    full_ = {rows.length, columns.length};
    last_ = {rows.extent - rows.begin(rows.tiles - 1),
             columns.extent - columns.begin(columns.tiles - 1)};
    if (layer.size > 0) count_ = rows.tiles * columns.tiles;
    is_turned_ = least_step(rows) < least_step(columns);
    outer = std::move(is_turned_ ? columns : rows);
    inner = std::move(is_turned_ ? rows : columns);
  }

  std::int64_t count() const { return count_; }

  // Calls body(tile, size) for the tiles [begin, end); the size is in weights.
  template <class Body>
  void for_each_size(std::int64_t begin, std::int64_t end, Body&& body) const {
    for (std::int64_t tile = begin; tile < end;) {
      const std::int64_t height = tile < last_row_ ? full_.first : last_.first;
      const std::int64_t last = tile / columns_ * columns_ + columns_ - 1;  // of its row
      const std::int64_t size = height * full_.second;
      for (const std::int64_t stop = std::min(last, end); tile < stop; ++tile) body(tile, size);
      if (tile == last && tile < end) body(tile++, height * last_.second);
    }
  }

  std::int64_t size_of(std::int64_t tile) const {
    std::int64_t size = 0;
    for_each_size(tile, tile + 1, [&](std::int64_t, std::int64_t found) { size = found; });
    return size;
  }

  // Where a tile is along the outer and the inner side.
  std::pair<std::int64_t, std::int64_t> place_of(std::int64_t tile) const {
    const std::int64_t row = tile / columns_;
    const std::int64_t column = tile % columns_;
    return is_turned_ ? std::make_pair(column, row) : std::make_pair(row, column);
  }

  TileSide outer;
  TileSide inner;

 private:
  static void cut(TileSide& side, std::int64_t length) {
    side.length = std::clamp<std::int64_t>(side.extent, 1, length);
    side.tiles = std::max<std::int64_t>((side.extent - 1) / side.length + 1, 1);
  }

  static std::int64_t least_step(const TileSide& side) {
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (std::size_t a = 0; a < side.shape.size(); ++a) {
      const std::int64_t step = std::abs(side.strides[a]);
      if (side.shape[a] > 1 && step > 0) least = std::min(least, step);
    }
    return least;
  }

  bool is_turned_;
  std::int64_t count_ = 0;
  std::int64_t columns_ = 1;                          // in tiles
  std::int64_t last_row_ = 0;                         // the number of its first tile
  std::pair<std::int64_t, std::int64_t> full_{1, 1};  // the extents of a tile
  std::pair<std::int64_t, std::int64_t> last_{1, 1};  // those of the last one
};

}  // namespace lampfast
