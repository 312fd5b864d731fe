// A layer, as every stage sees it: a strided tensor, given by its address.
#pragma once

#include <cstddef>
#include <cstdint>
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

// Strides count elements; the caller keeps the memory alive.
struct Layer {
  static constexpr int in_host_memory = -1;

  std::byte* data;
  Dtype dtype;
  std::vector<std::int64_t> shape;
  std::vector<std::int64_t> strides;
  int device;         // the index of the GPU, or in_host_memory
  std::int64_t size;  // the product of the shape
};

// Layer ids: positions in the call's list of layers.
using LayerIds = std::vector<std::size_t>;

}  // namespace lampfast
