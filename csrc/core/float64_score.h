// LAMP scores of float64 magnitudes, on the host and on GPUs.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "core/compensated_sum.h"
#include "core/host_device.h"
#include "core/key_format.h"

namespace lampfast {

// Computes in double-double arithmetic, so that a score is rounded only once. A magnitude is a
// double in [1, 2) and an exponent relative to the largest magnitude's: a square that underflows is
// too small to matter in the sum, and the exponent is applied to a score last.
class Float64Score {
 public:
  using Format = Float64;
  using Score = double;

  LAMPFAST_HOST_DEVICE explicit Float64Score(std::uint64_t largest_key)
      : largest_exponent_(exponent_of(std::max<std::uint64_t>(largest_key, 1))) {}

  class Total {
   public:
    // Adds (magnitude * 2^exponent)^2 without rounding the square.
    LAMPFAST_HOST_DEVICE void add_square(double magnitude, int exponent) {
      const double square = magnitude * magnitude;
      sum_.low += std::ldexp(std::fma(magnitude, magnitude, -square), 2 * exponent);
      sum_.add(std::ldexp(square, 2 * exponent));
      normalise();
    }

    LAMPFAST_HOST_DEVICE void add(const Total& other) {
      sum_.add(other.sum_);
      normalise();
    }

    // magnitude^2 / sum.
    LAMPFAST_HOST_DEVICE double ratio(double magnitude) const {
      const double square = magnitude * magnitude;
      const double error = std::fma(magnitude, magnitude, -square);
      const double quotient = square / sum_.high;
      const double rest = std::fma(-quotient, sum_.high, square) + (error - quotient * sum_.low);
      return quotient + rest / sum_.high;
    }

   private:
    LAMPFAST_HOST_DEVICE void normalise() {
      const double high = sum_.high + sum_.low;
      sum_.low = sum_.low - (high - sum_.high);
      sum_.high = high;
    }

    CompensatedSum sum_;
  };

  Total total(const std::uint64_t* keys, std::size_t count) const {
    Total total;
    for (std::size_t i = 0; i < count; ++i) {
      add(total, keys[i]);
    }
    return total;
  }

  template <class Sorted>
  void write(const Sorted& sorted, Total& after, std::uint64_t* to) const {
    for (std::size_t i = sorted.count; i-- > 0;) {
      to[sorted.place(i)] = bit_cast<std::uint64_t>(add_and_score(after, sorted.key(i)));
    }
  }

  LAMPFAST_HOST_DEVICE void add(Total& total, std::uint64_t key) const {
    if (key != 0) add(total, Magnitude(key));
  }

  // The score of a magnitude. `total` is that of all later elements, and then includes this one.
  LAMPFAST_HOST_DEVICE double add_and_score(Total& total, std::uint64_t key) const {
    if (key == 0) return 0.0;
    const Magnitude magnitude(key);
    add(total, magnitude);
    return std::ldexp(total.ratio(magnitude.value), 2 * (magnitude.exponent - largest_exponent_));
  }

 private:
  // Within the range of finite numbers also for NaN and infinity, which another thread may have
  // written since the layer was checked: sums of exponents must not overflow.
  LAMPFAST_HOST_DEVICE static int exponent_of(std::uint64_t key) {
    const int exponent = std::ilogb(Float64::value(key));
    return exponent < -1074 ? -1074 : exponent > 1023 ? 1023 : exponent;
  }

  struct Magnitude {
    LAMPFAST_HOST_DEVICE explicit Magnitude(std::uint64_t key)
        : exponent(exponent_of(key)), value(std::ldexp(Float64::value(key), -exponent)) {}

    int exponent;
    double value;
  };

  LAMPFAST_HOST_DEVICE void add(Total& total, const Magnitude& magnitude) const {
    total.add_square(magnitude.value, magnitude.exponent - largest_exponent_);
  }

  int largest_exponent_;
};

}  // namespace lampfast
