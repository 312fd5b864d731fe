// Derives each float64 layer's scale from its largest weight.
#include "estimate/scales.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/key_format.h"
#include "core/not_finite.h"

namespace lampfast {
namespace {

// The power of two that brings the layer's largest weight near 1. With exponents up to +-1000, the
// scale and its inverse are normal numbers, squares stay far from overflow, and any square that
// underflows is below 2^-700 of the layer's sum.
double scale_for(std::uint64_t largest_key) {
  if (largest_key >= Float64::not_finite) throw NotFinite();
  if (largest_key == 0) return 1.0;
  return std::ldexp(1.0, -std::clamp(std::ilogb(Float64::value(largest_key)), -1000, 1000));
}

}  // namespace

std::vector<double> find_scales(Backends& backends) {
  const std::vector<Layer>& layers = backends.layers();
  LayerIds float64_ids;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    // Products of codes and scales are in range as they are (core/block_scales.h).
    const bool is_wide = layers[i].dtype == Dtype::float64 && !layers[i].scales;
    if (is_wide) float64_ids.push_back(i);
  }
  std::vector<double> scales(layers.size(), 1.0);
  const std::vector<std::uint64_t> largest = backends.largest_keys(float64_ids);
  for (std::size_t w = 0; w < float64_ids.size(); ++w)
    scales[float64_ids[w]] = scale_for(largest[w]);
  return scales;
}

}  // namespace lampfast
