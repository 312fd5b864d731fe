// How a score is computed from magnitudes in ascending order, in each of the two precisions.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "exact_sum.h"
#include "magnitude.h"

namespace lampfast {

// float32: squares are exact in a double, and sums of a few of them nearly so.
class Single {
 public:
  using Format = Float32;
  using Score = float;
  using Total = Sum;

  explicit Single(std::uint32_t) {}

  // The squares of magnitudes in any order.
  Total total(const std::uint32_t* keys, std::size_t count) const {
    constexpr std::size_t leaf = Sum::leaf_terms;
    constexpr std::size_t chains = 8;  // an addition waits for the one before it
    Sum sum;
    for (std::size_t begin = 0; begin < count; begin += leaf) {
      const std::size_t end = std::min(begin + leaf, count);
      double parts[chains] = {};
      std::size_t i = begin;
      for (; i + chains <= end; i += chains) {
        for (std::size_t j = 0; j < chains; ++j) {
          parts[j] += scaled_square<Float32>(keys[i + j], 1.0);
        }
      }
      for (; i < end; ++i) parts[0] += scaled_square<Float32>(keys[i], 1.0);
      for (std::size_t j = 1; j < chains; ++j) parts[0] += parts[j];
      sum.add(parts[0]);
    }
    return sum;
  }

  // Writes the scores of magnitudes that are followed by others with this total of squares, which
  // then includes theirs; bit by bit, each to its place.
  template <class Sorted>
  void write(const Sorted& sorted, Total& after, std::uint32_t* to) const {
    for (std::size_t end = sorted.count; end > 0;) {
      const std::size_t count = std::min(end, block);
      end -= count;
      std::uint32_t keys[block];
      float scores[block];
      std::fill_n(keys, block - count, 0);
      std::uint32_t* const last_keys = keys + (block - count);
      for (std::size_t i = 0; i < count; ++i) last_keys[i] = sorted.key(end + i);
      const double sum = score_keys_(keys, after.value(), scores);
      after.add(sum);
      const float* const last_scores = scores + (block - count);
      for (std::size_t i = 0; i < count; ++i) {
        to[sorted.place(end + i)] = bit_cast<std::uint32_t>(last_scores[i]);
      }
    }
  }

 private:
  static constexpr std::size_t block = cpu::score_block;

  cpu::ScoreKeys score_keys_ = cpu::score_keys();
};

// float64: in twice the precision, so that a score rounds only once. Magnitudes are a double in
// [1, 2) and an exponent relative to the largest one's: whatever underflows in the sum is too small
// to matter there, and no score does.
class Double {
 public:
  using Format = Float64;
  using Score = double;

  explicit Double(std::uint64_t largest_key)
      : largest_exponent_(std::ilogb(Float64::value(std::max<std::uint64_t>(largest_key, 1)))) {}

  class Total {
   public:
    // Adds (magnitude * 2^exponent)^2 without rounding the square.
    void add_square(double magnitude, int exponent) {
      const double square = magnitude * magnitude;
      sum_.low += std::ldexp(std::fma(magnitude, magnitude, -square), 2 * exponent);
      sum_.add(std::ldexp(square, 2 * exponent));
      normalise();
    }

    void add(const Total& other) {
      sum_.add(other.sum_);
      normalise();
    }

    // magnitude^2 / sum.
    double ratio(double magnitude) const {
      const double square = magnitude * magnitude;
      const double error = std::fma(magnitude, magnitude, -square);
      const double quotient = square / sum_.high;
      const double rest = std::fma(-quotient, sum_.high, square) + (error - quotient * sum_.low);
      return quotient + rest / sum_.high;
    }

   private:
    void normalise() {
      const double high = sum_.high + sum_.low;
      sum_.low = sum_.low - (high - sum_.high);
      sum_.high = high;
    }

    Sum sum_;
  };

  Total total(const std::uint64_t* keys, std::size_t count) const {
    Total total;
    for (std::size_t i = 0; i < count; ++i) {
      if (keys[i] != 0) add(total, Magnitude(keys[i]));
    }
    return total;
  }

  template <class Sorted>
  void write(const Sorted& sorted, Total& after, std::uint64_t* to) const {
    for (std::size_t i = sorted.count; i-- > 0;) {
      to[sorted.place(i)] = bit_cast<std::uint64_t>(add_and_score(after, sorted.key(i)));
    }
  }

 private:
  struct Magnitude {
    explicit Magnitude(std::uint64_t key)
        : exponent(std::ilogb(Float64::value(key))),
          value(std::ldexp(Float64::value(key), -exponent)) {}

    int exponent;
    double value;
  };

  void add(Total& total, const Magnitude& magnitude) const {
    total.add_square(magnitude.value, magnitude.exponent - largest_exponent_);
  }

  double add_and_score(Total& total, std::uint64_t key) const {
    if (key == 0) return 0.0;
    const Magnitude magnitude(key);
    add(total, magnitude);
    return std::ldexp(total.ratio(magnitude.value), 2 * (magnitude.exponent - largest_exponent_));
  }

  int largest_exponent_;
};

}  // namespace lampfast
