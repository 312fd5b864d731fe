// A layer, as every stage sees it: a strided tensor, given by its address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace lampfast {

enum class Dtype : std::uint8_t {
  float32,
  float16,
  bfloat16,
  float64,
  float8_e4m3fn,
  float8_e5m2,
  boolean,
};

// The scales of a quantised layer: it is stored as float8 codes, and the real product of each code
// and the scale of its block is what is ranked (core/block_scales.h).
struct BlockScales {
  const float* data;
  Dtype codes;
  std::vector<std::int64_t> block;    // the extents of a block
  std::vector<std::int64_t> strides;  // from the scale of one block to that of the next, or 0
};

// Strides count elements; the caller keeps the memory alive.
struct Layer {
  static constexpr int in_host_memory = -1;

  std::byte* data;
  Dtype dtype;  // of what is ranked: where there are scales, float64
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  int device;         // the index of the GPU, or in_host_memory
  std::int64_t size;  // the product of the shape
  std::optional<BlockScales> scales = std::nullopt;

  // How the elements lie in memory.
  Dtype stored() const { return scales ? scales->codes : dtype; }
};

// Layer ids: positions in the call's list of layers.
using LayerIds = std::vector<std::size_t>;

}  // namespace lampfast
