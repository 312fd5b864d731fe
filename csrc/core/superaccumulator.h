// A superaccumulator: the exact sum of squared magnitudes, added in any order (Kulisch, Computer
// Arithmetic and Validity, 2013).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/big_uint.h"
#include "core/uint128.h"

namespace lampfast {

// The exact sum of up to 2^64 squared magnitudes of one format: for every exponent the sum of the
// squared mantissas, whose low and high 64 bits are added up separately so that neither sum can
// overflow.
template <class Format>
class Superaccumulator {
 public:
  Superaccumulator() : halves_(Format::exponents) {}

  void add_square(typename Format::Storage key) {
    const auto mantissa = Uint128{Format::mantissa(key)};
    const Uint128 square = mantissa * mantissa;
    Halves& halves = halves_[static_cast<std::size_t>(Format::exponent_index(key))];
    halves.low += static_cast<std::uint64_t>(square);
    halves.high += static_cast<std::uint64_t>(square >> 64);
  }

  // In units of 2^(2 * Format::least_exponent).
  BigUint total() const {
    BigUint sum;
    for (std::size_t i = 0; i < halves_.size(); ++i) {
      const int shift = 2 * static_cast<int>(i);
      if (halves_[i].low) sum += BigUint(halves_[i].low).shifted(shift);
      if (halves_[i].high) sum += BigUint(halves_[i].high).shifted(shift + 64);
    }
    return sum;
  }

 private:
  struct Halves {
    Uint128 low = 0;
    Uint128 high = 0;
  };
  std::vector<Halves> halves_;
};

}  // namespace lampfast
