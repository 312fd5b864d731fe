// What each group of a draw has on either side of a key. Tallies of parts of a draw add up.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/drawn_pieces.h"

namespace lampfast {

// The key at which a draw is tallied.
struct TallyRequest {
  std::uint64_t key;
  double scale;  // for scaled_square (key_format.h)
};

struct GroupTallies {
  using Groups = std::array<double, draw_groups>;

  Groups drawn{};  // elements
  Groups below{};  // elements with smaller keys
  Groups above{};  // the sum of the scaled squares of the others

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
