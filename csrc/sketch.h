// Sketch: a coarse histogram of some of a layer's elements, little to make on a GPU and little to
// copy from it, and the guess from the sketches of all layers.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "blocks.h"
#include "both.h"
#include "cpu/parallel.h"
#include "goal.h"
#include "guess.h"
#include "layer.h"
#include "magnitude.h"
#include "tiny.h"

namespace lampfast {

// How many of the drawn elements have which leading bits of the key: slots of equal width on each
// octave of magnitudes, for the 32 octaves below the largest drawn one.
struct Sketch {
  static constexpr int slots = 512;
  static constexpr int bits_per_octave = 4;

  std::uint64_t first = 0;                    // the key >> sketch_shift of counts[0], which also
  std::int64_t drawn = 0;                     // has all that is smaller
  std::array<std::uint16_t, slots> counts{};  // as few are drawn as fit
};

template <class Format>
constexpr int sketch_shift() {
  constexpr int surplus = Format::mantissa_bits - Sketch::bits_per_octave;
  return surplus > 0 ? surplus : 0;
}

inline int sketch_shift(Dtype dtype) {
  return with_format(dtype, [](auto format) { return sketch_shift<decltype(format)>(); });
}

constexpr std::int64_t most_sketch_draws = tiny ? 64 : 1 << 15;

LAMPFAST_BOTH constexpr std::int64_t sketch_draws(std::int64_t size) {
  return size < most_sketch_draws ? size : most_sketch_draws;
}

// The position of a draw, in the visiting order of walk.h: at a scrambled place in one of equal
// parts of the layer, so that no period of the weights can hide. Parts need not begin where
// elements do, or those in parts with an element more would be drawn less often.
LAMPFAST_BOTH inline std::int64_t drawn_position(std::int64_t size, std::int64_t draws,
                                                 std::int64_t draw) {
  return (draw * size + scramble(static_cast<std::uint64_t>(draw), size)) / draws;
}

// Of a layer in host memory, where every draw waits for the memory: of fewer of its elements, so
// that the sketch takes a small part of the time that the survey does.
Sketch draw_sketch(const Layer& layer);

// A guess (guess.h) from one sketch per layer.
Guess guess_from(const std::vector<Layer>& layers, const std::vector<double>& scales,
                 const std::vector<Sketch>& sketches, const Goal& goal, cpu::Team& team);

}  // namespace lampfast
