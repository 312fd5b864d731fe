// A coarse histogram of the magnitudes of some of a layer's elements, by their leading bits: little
// to make where the layer lives, and little to copy from there.
#pragma once

#include <array>
#include <cstdint>

#include "core/host_device.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/strata.h"
#include "core/test_sizes.h"

namespace lampfast {

// How many of the drawn elements have which leading bits of the key: bins of equal width on each
// octave of magnitudes, for the 32 octaves below the largest drawn one.
struct LogHistogram {
  static constexpr int bins = 512;
  static constexpr int bits_per_octave = 4;

  std::uint64_t first = 0;                   // the key >> histogram_shift of counts[0], which also
  std::int64_t drawn = 0;                    // has all that is smaller
  std::array<std::uint16_t, bins> counts{};  // as few are drawn as fit
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

// The position of a draw, in the visiting order of strided_walk.h: at a scrambled place in one of
// equal parts of the layer, so that no period of the weights can hide. Parts need not begin where
// elements do, or those in parts with an element more would be drawn less often.
LAMPFAST_HOST_DEVICE inline std::int64_t drawn_position(std::int64_t size, std::int64_t draws,
                                                        std::int64_t draw) {
  return (draw * size + scramble(static_cast<std::uint64_t>(draw), size)) / draws;
}

}  // namespace lampfast
