// Quantised layers: elements are float8 codes, and each is ranked by the magnitude of its product
// with the scale of its block. Under one scale products rise with the codes' magnitudes, so that an
// interval of products is an interval of codes in each block.
//
// A code has a mantissa of at most 4 bits and a float32 scale one of at most 24, so that a product
// has at most 28; it is 0 or from 2^-165 to 2^144. In a double it is therefore exact and normal,
// and so, up to one rounding, is its square.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/key_format.h"
#include "core/layer.h"

namespace lampfast {

// As many dimensions as a layer with scales may have.
constexpr std::size_t most_scaled_dimensions = 64;

// Where an element lies in a layer with scales.
class BlockPosition {
 public:
  // The element of a row-major index, from which a run goes on along the dimension whose row-major
  // stride is `step`.
  BlockPosition(const Layer& layer, std::int64_t index, std::int64_t step) noexcept
      : shape_(layer.shape), scales_(*layer.scales) {
    std::int64_t stride = 1;
    for (std::size_t d = shape_.size(); d-- > 0; stride *= shape_[d]) {
      at_[d] = index / stride % shape_[d];
      if (shape_[d] > 1 && stride == step) along_ = d;
    }
    find_base();
  }

  // How many elements of the run from here on, and of at most `most`, share a scale.
  std::int64_t shared(std::int64_t most) const noexcept {
    if (shape_.empty()) return most;
    const std::int64_t at = at_[along_];
    const std::int64_t block = scales_.block[along_];
    most = std::min(most, shape_[along_] - at);
    return scales_.strides[along_] == 0 ? most : std::min(most, block - at % block);
  }

  double scale() const noexcept {
    const std::int64_t offset = shape_.empty() ? 0 : base_ + offset_in(along_);
    return std::fabs(static_cast<double>(scales_.data[offset]));
  }

  // How many elements of a run at most share a scale.
  std::int64_t longest_shared() const noexcept {
    if (shape_.empty()) return 1;
    const bool all_share = scales_.strides[along_] == 0;
    return all_share ? shape_[along_] : std::min(shape_[along_], scales_.block[along_]);
  }

  // How many elements there are from here on before the run goes on in the next outer dimension.
  std::int64_t left() const noexcept { return shape_.empty() ? 1 : shape_[along_] - at_[along_]; }

  // Multiplies each of the next elements, doubles of which no more than are left, by its scale.
  void scale(std::uint64_t* doubles, std::int64_t count) const noexcept {
    const std::int64_t block = shape_.empty() ? 1 : scales_.block[along_];
    const std::int64_t stride = shape_.empty() ? 0 : scales_.strides[along_];
    const std::int64_t at = shape_.empty() ? 0 : at_[along_];
    const float* here = scales_.data + base_ + at / block * stride;
    std::int64_t rest = stride == 0 ? count : block - at % block;  // that share a scale
    for (std::int64_t i = 0; i < count; rest = block, here += stride) {
      const double scale = std::fabs(static_cast<double>(*here));
      for (const std::int64_t end = i + std::min(rest, count - i); i < end; ++i) {
        doubles[i] = bit_cast<std::uint64_t>(bit_cast<double>(doubles[i]) * scale);
      }
    }
  }

  // Goes on along the run, by no more elements than are left.
  void advance(std::int64_t count) noexcept {
    if (shape_.empty()) return;
    at_[along_] += count;
    if (at_[along_] < shape_[along_]) return;
    for (std::size_t d = along_; at_[d] == shape_[d] && d > 0; --d) {
      at_[d] = 0;
      ++at_[d - 1];
    }
    find_base();
  }

 private:
  std::int64_t offset_in(std::size_t d) const noexcept {
    return scales_.strides[d] == 0 ? 0 : at_[d] / scales_.block[d] * scales_.strides[d];
  }

  // Of the scales, in all dimensions but the run's.
  void find_base() noexcept {
    base_ = 0;
    for (std::size_t d = 0; d < shape_.size(); ++d) base_ += d == along_ ? 0 : offset_in(d);
  }

  const std::vector<std::int64_t>& shape_;
  const BlockScales& scales_;
  std::array<std::int64_t, most_scaled_dimensions> at_;
  std::size_t along_ = 0;
  std::int64_t base_ = 0;
};

// The smallest key of a code whose product with the scale has at least this key; if it is that of
// no finite code, the first key that is not finite.
template <class Format>
std::uint64_t least_code(double scale, std::uint64_t product) noexcept {
  constexpr std::int64_t rebias = std::int64_t{Float64::bias - Format::bias}
                                  << Format::mantissa_bits;
  if (product >= Float64::not_finite) return Format::not_finite;
  const double least = Float64::value(product);
  const auto is_below = [&](std::int64_t code) {
    return Format::value(static_cast<typename Format::Storage>(code)) * scale < least;
  };
  // The quotient is rounded, and codes may be subnormal, so that this is only near.
  const auto bits = bit_cast<std::uint64_t>(least / scale);
  const auto near =
      static_cast<std::int64_t>(bits >> (Float64::mantissa_bits - Format::mantissa_bits));
  std::int64_t code = std::clamp<std::int64_t>(near - rebias, 0, Format::not_finite);
  while (code > 0 && !is_below(code - 1)) --code;
  while (code < Format::not_finite && is_below(code)) ++code;
  return static_cast<std::uint64_t>(code);
}

inline std::uint64_t least_code(Dtype codes, double scale, std::uint64_t product) noexcept {
  return codes == Dtype::float8_e5m2 ? least_code<Float8E5M2>(scale, product)
                                     : least_code<Float8E4M3FN>(scale, product);
}

}  // namespace lampfast
