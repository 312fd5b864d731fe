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
  }
}

// What tiles are read of.
inline void check_tiled(const std::vector<Layer>& tensors) {
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    if (tensors[i].device != Layer::in_host_memory || tensors[i].scales) {
      throw std::invalid_argument("layer " + std::to_string(i) +
                                  " is on a GPU or has scales, and blocks are for neither");
    }
  }
}

// The numbers and sizes of a layer's tiles.
class TileGrid {
 public:
  TileGrid(const std::vector<std::int64_t>& shape, const BlockShape& block) {
    const auto inputs = static_cast<std::size_t>(block.axis);
    std::int64_t rows = 1;
    std::int64_t columns = 1;
    for (std::size_t axis = 0; axis < shape.size(); ++axis) {
      (shape.size() > 1 && axis == 1 - inputs ? rows : columns) *= shape[axis];
    }
    rows_ = Side(rows, block.rows);
    columns_ = Side(columns, block.columns);
    count_ = rows == 0 || columns == 0 ? 0 : rows_.tiles * columns_.tiles;
    last_row_ = (rows_.tiles - 1) * columns_.tiles;
  }

  struct Side {
    Side() = default;
    Side(std::int64_t of, std::int64_t most)
        : extent(of),
          length(std::clamp<std::int64_t>(of, 1, most)),
          tiles(std::max<std::int64_t>((of - 1) / length + 1, 1)) {}

    std::int64_t last() const { return extent - (tiles - 1) * length; }

    std::int64_t extent = 1;
    std::int64_t length = 1;  // of a tile; the last one may be shorter
    std::int64_t tiles = 1;
  };

  std::int64_t count() const { return count_; }
  const Side& rows() const { return rows_; }
  const Side& columns() const { return columns_; }

  // Calls body(tile, size) for the tiles [begin, end); the size is in weights.
  template <class Body>
  void for_each_size(std::int64_t begin, std::int64_t end, Body&& body) const {
    for (std::int64_t tile = begin; tile < end;) {
      const std::int64_t height = tile < last_row_ ? rows_.length : rows_.last();
      const std::int64_t last = tile / columns_.tiles * columns_.tiles + columns_.tiles - 1;
      const std::int64_t size = height * columns_.length;
      for (const std::int64_t stop = std::min(last, end); tile < stop; ++tile) body(tile, size);
      if (tile == last && tile < end) body(tile++, height * columns_.last());
    }
  }

  std::int64_t size_of(std::int64_t tile) const {
    std::int64_t size = 0;
    for_each_size(tile, tile + 1, [&](std::int64_t, std::int64_t found) { size = found; });
    return size;
  }

 private:
  std::int64_t count_;
  std::int64_t last_row_;  // the number of its first tile
  Side rows_;
  Side columns_;
};

// Where a piece's tiles are among those of its layer: a rectangle of them.
class TileRange {
 public:
  // All of a layer's tiles.
  explicit TileRange(const TileGrid& grid) : own_(&grid), all_columns_(grid.columns().tiles) {}

  // Throws std::invalid_argument if the piece, whose tiles are `own` and whose first element has
  // this index, does not begin where a tile does, or has no place.
  TileRange(const TileGrid& own, const TileGrid& all, const Layer& layer, const BlockShape& block,
            std::int64_t first)
      : own_(&own), all_columns_(all.columns().tiles) {
    const Strides steps = row_major_strides(layer.shape);
    const auto inputs = static_cast<std::size_t>(block.axis);
    std::int64_t row = 0;
    std::int64_t column = 0;
    for (std::size_t axis = 0; axis < steps.size() && own.count() > 0; ++axis) {
      const std::int64_t at = first / steps[axis] % layer.shape[axis];
      if (steps.size() > 1 && axis == 1 - inputs) {
        row = at;
      } else {
        column = column * layer.shape[axis] + at;
      }
    }
    row_ = row / all.rows().length;
    column_ = column / all.columns().length;
    if (row % all.rows().length != 0 || column % all.columns().length != 0 ||
        row_ + own.rows().tiles > all.rows().tiles ||
        column_ + own.columns().tiles > all.columns().tiles) {
      throw std::invalid_argument("a piece of a layer does not consist of whole tiles");
    }
  }

  // From the number of a tile in the piece to that in the layer.
  std::int64_t number_of(std::int64_t tile) const {
    const std::int64_t columns = own_->columns().tiles;
    if (columns == all_columns_) return row_ * columns + tile;
    return (row_ + tile / columns) * all_columns_ + column_ + tile % columns;
  }

  // The other way round; -1 if the piece does not have the tile.
  std::int64_t tile_of(std::int64_t number) const {
    const std::int64_t columns = own_->columns().tiles;
    if (columns == all_columns_) {
      const std::int64_t tile = number - row_ * columns;
      return tile >= 0 && tile < own_->count() ? tile : -1;
    }
    const std::int64_t row = number / all_columns_ - row_;
    const std::int64_t column = number % all_columns_ - column_;
    const bool is_here = row >= 0 && row < own_->rows().tiles && column >= 0 && column < columns;
    return is_here && own_->count() > 0 ? row * columns + column : -1;
  }

 private:
  const TileGrid* own_;
  std::int64_t all_columns_;
  std::int64_t row_ = 0;
  std::int64_t column_ = 0;
};

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
  Tiling(const Layer& layer, const BlockShape& block) : grid(layer.shape, block) {
    const std::size_t dimensions = layer.shape.size();
    TileSide rows, columns;
    const auto add = [&](TileSide& side, std::size_t axis) {
      side.shape.push_back(layer.shape[axis]);
      side.strides.push_back(layer.strides[axis]);
    };
    const auto inputs = static_cast<std::size_t>(block.axis);
    if (dimensions > 1) add(rows, 1 - inputs);
    if (dimensions > 0) add(columns, inputs);
    for (std::size_t axis = 2; axis < dimensions; ++axis) add(columns, axis);
    const auto cut = [](TileSide& side, const TileGrid::Side& along) {
      side.extent = along.extent;
      side.length = along.length;
      side.tiles = along.tiles;
    };
    cut(rows, grid.rows());
    cut(columns, grid.columns());
    rows.number_step = columns.tiles;
    is_turned_ = least_step(rows) < least_step(columns);
    outer = std::move(is_turned_ ? columns : rows);
    inner = std::move(is_turned_ ? rows : columns);
  }

  // Where a tile is along the outer and the inner side.
  std::pair<std::int64_t, std::int64_t> place_of(std::int64_t tile) const {
    const std::int64_t row = tile / grid.columns().tiles;
    const std::int64_t column = tile % grid.columns().tiles;
    return is_turned_ ? std::make_pair(column, row) : std::make_pair(row, column);
  }

  TileGrid grid;
  TileSide outer;
  TileSide inner;

 private:
  static std::int64_t least_step(const TileSide& side) {
    std::int64_t least = std::numeric_limits<std::int64_t>::max();
    for (std::size_t a = 0; a < side.shape.size(); ++a) {
      const std::int64_t step = std::abs(side.strides[a]);
      if (side.shape[a] > 1 && step > 0) least = std::min(least, step);
    }
    return least;
  }

  bool is_turned_;
};

}  // namespace lampfast
