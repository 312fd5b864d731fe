// What a layer, or each group of a draw, has on either side of a key. Tallies of parts add up.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/drawn_pieces.h"

namespace lampfast {

// The key, above 0, at which elements are tallied, and a factor that keeps the squares of their
// magnitudes in the range of float32.
struct TallyRequest {
  std::uint64_t key;
  double scale;
};

// What elements have on either side of the key. Sums are for estimates only.
struct Tally {
  double below = 0.0;  // elements with smaller keys
  double above = 0.0;  // the sum of the squares of the others' magnitudes, times the scale

  void add(const Tally& other) {
    below += other.below;
    above += other.above;
  }
};

struct GroupTallies {
  using Groups = std::array<double, draw_groups>;

  Groups drawn{};  // elements
  Groups below{};
  Groups above{};  // see Tally

  void add(const GroupTallies& other) {
    for (std::size_t g = 0; g < draw_groups; ++g) {
      drawn[g] += other.drawn[g];
      below[g] += other.below[g];
      above[g] += other.above[g];
    }
  }

  // Leaves what lies between the key of these tallies and that of others of the same draw.
  void subtract(const GroupTallies& other) {
    for (std::size_t g = 0; g < draw_groups; ++g) {
      below[g] -= other.below[g];
      above[g] -= other.above[g];
    }
  }

  static double total(const Groups& groups) {
    double sum = 0.0;
    for (const double group : groups) sum += group;
    return sum;
  }
};

}  // namespace lampfast
