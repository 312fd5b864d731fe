// Tiles of layers in host memory (core/tiling.h): reads their sums of squares, in doubles or
// exactly, and zeroes those that go or writes their masks.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/big_uint.h"
#include "core/layer.h"
#include "core/tiling.h"
#include "cpu/thread_pool.h"
#include "select/select_tiles.h"

namespace lampfast::cpu {

// The work of one task: the tiles [begin, end) along both sides of a layer.
struct TilePart {
  std::size_t layer;
  std::int64_t outer_begin, outer_end;
  std::int64_t inner_begin, inner_end;
};

class Tiles : public ExactTiles {
 public:
  Tiles(const std::vector<Layer>& layers, const std::vector<BlockShape>& blocks, ThreadPool& pool);

  const std::vector<Tiling>& tilings() const { return tilings_; }

  // Reads the layers once. Throws NotFinite.
  std::vector<TileSums> sums(const std::vector<double>& scales) const;

  BigUint sum_of(std::size_t layer, std::int64_t tile) const override;
  BigUint sum_of_staying(std::size_t layer, const std::vector<Fate>& fates) const override;

 private:
  const std::vector<Layer>& layers_;
  std::vector<Tiling> tilings_;
  ThreadPool& pool_;
};

// Writes what became of the tiles: masks, or zeroes. The constructor takes all the memory and
// starts the threads; write cannot fail.
class TileWriter {
 public:
  TileWriter(const std::vector<Layer>& targets, const std::vector<BlockShape>& blocks,
             const Fates& fates, ThreadPool& pool);

  void write() noexcept;

 private:
  const std::vector<Layer>& targets_;
  const Fates& fates_;
  std::vector<Tiling> tilings_;
  std::vector<TilePart> parts_;
  ThreadPool& pool_;
};

}  // namespace lampfast::cpu
