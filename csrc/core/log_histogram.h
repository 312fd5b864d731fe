// A coarse histogram of a sample of a layer's magnitudes, by the leading bits of their keys: cheap
// to make where the layer lives, and cheap to copy from there.
#pragma once

#include <array>
#include <cstdint>

#include "core/host_device.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/strata.h"
#include "core/test_sizes.h"

namespace lampfast {

// Every octave (factor of two) of magnitudes is divided into up to 16 bins of equal width. The bins
// cover at least the 32 octaves below the largest drawn magnitude.
struct LogHistogram {
  static constexpr int bins = 512;
  static constexpr int bits_per_octave = 4;

  std::uint64_t first = 0;  // the key >> histogram_shift of counts[0], which also has all below it
  std::int64_t drawn = 0;
  std::array<std::uint16_t, bins> counts{};  // 16 bits, as at most most_histogram_draws are drawn
};

template <class Format>
constexpr int histogram_shift() {
  constexpr int surplus = Format::mantissa_bits - LogHistogram::bits_per_octave;
  return surplus > 0 ? surplus : 0;
}

inline int histogram_shift(Dtype dtype) {
  return with_format(dtype, [](auto format) { return histogram_shift<decltype(format)>(); });
}

constexpr std::int64_t most_histogram_draws = test_sizes ? 64 : 1 << 15;

LAMPFAST_HOST_DEVICE constexpr std::int64_t histogram_draws(std::int64_t size) {
  return size < most_histogram_draws ? size : most_histogram_draws;
}

// The position (strided_walk.h) of a draw: one from each of `draws` equal strata of the layer, at a
// scrambled place in it, so that no period of the weights can hide. Strata begin at fractions of an
// element: were they rounded, elements of longer strata would be drawn less often.
LAMPFAST_HOST_DEVICE inline std::int64_t drawn_position(std::int64_t size, std::int64_t draws,
                                                        std::int64_t draw) {
  return (draw * size + scramble(static_cast<std::uint64_t>(draw), size)) / draws;
}

}  // namespace lampfast
