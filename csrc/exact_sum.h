// Sums of squares that merge in any order: one in floating point with a rigorous bound, one exact.
//
// The floating sum answers nearly every comparison; the exact one decides those that the bound
// leaves open (Shewchuk, Adaptive precision floating-point arithmetic, 1997).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "both.h"
#include "magnitude.h"

namespace lampfast {

__extension__ typedef unsigned __int128 Uint128;

// A sum of non-negative doubles, each of which may itself be the plain sum of at most `leaf_terms`
// squares. Compensation keeps what the additions lose, so that the relative error stays below
// `relative_error` in whatever order sums are merged: 2^-41 from a leaf's plain additions, 2^-52
// from float64's rounded squares, and (n * 2^-53)^2 from the compensation's own rounding along a
// chain of n additions, below 2^-42 up to n = 2^32.
struct Sum {
  static constexpr int leaf_terms = 1 << 12;
  static constexpr double relative_error = 0x1p-40;

  double high = 0.0;
  double low = 0.0;

  LAMPFAST_BOTH void add(double term) {
    const double total = high + term;
    const double kept = total - term;
    low += (high - kept) + (term - (total - kept));
    high = total;
  }

  LAMPFAST_BOTH void add(const Sum& other) {
    add(other.high);
    low += other.low;
  }

  LAMPFAST_BOTH double value() const { return high + low; }
};

// A natural number of any size, for the comparisons that doubles cannot decide.
class Natural {
 public:
  Natural() = default;
  explicit Natural(Uint128 value)
      : limbs_{static_cast<std::uint64_t>(value), static_cast<std::uint64_t>(value >> 64)} {
    trim();
  }

  Natural& operator+=(const Natural& other) {
    limbs_.resize(std::max(limbs_.size(), other.limbs_.size()) + 1);
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < limbs_.size(); ++i) {
      const Uint128 sum =
          Uint128{limbs_[i]} + (i < other.limbs_.size() ? other.limbs_[i] : 0) + carry;
      limbs_[i] = static_cast<std::uint64_t>(sum);
      carry = static_cast<std::uint64_t>(sum >> 64);
    }
    trim();
    return *this;
  }

  Natural times(std::uint64_t factor) const {
    Natural product;
    product.limbs_.resize(limbs_.size() + 1);
    std::uint64_t carry = 0;
    for (std::size_t i = 0; i < limbs_.size(); ++i) {
      const Uint128 partial = Uint128{limbs_[i]} * factor + carry;
      product.limbs_[i] = static_cast<std::uint64_t>(partial);
      carry = static_cast<std::uint64_t>(partial >> 64);
    }
    product.limbs_.back() = carry;
    product.trim();
    return product;
  }

  Natural shifted(int bits) const {
    const auto words = static_cast<std::size_t>(bits / 64);
    Natural result = times(std::uint64_t{1} << (bits % 64));
    if (!result.limbs_.empty()) result.limbs_.insert(result.limbs_.begin(), words, 0);
    return result;
  }

  // Negative, zero or positive as a is less than, equal to or greater than b.
  static int compare(const Natural& a, const Natural& b) {
    if (a.limbs_.size() != b.limbs_.size()) return a.limbs_.size() < b.limbs_.size() ? -1 : 1;
    for (std::size_t i = a.limbs_.size(); i-- > 0;) {
      if (a.limbs_[i] != b.limbs_[i]) return a.limbs_[i] < b.limbs_[i] ? -1 : 1;
    }
    return 0;
  }

 private:
  void trim() {
    while (!limbs_.empty() && limbs_.back() == 0) limbs_.pop_back();
  }

  std::vector<std::uint64_t> limbs_;  // least significant first, the last one not zero
};

// The exact sum of up to 2^64 squared magnitudes of one format: for every exponent the sum of the
// squared mantissas, in two halves so that neither can overflow.
template <class Format>
class ExactSum {
 public:
  ExactSum() : halves_(Format::exponents) {}

  void add_square(typename Format::Storage key) {
    const auto mantissa = Uint128{Format::mantissa(key)};
    const Uint128 square = mantissa * mantissa;
    Halves& halves = halves_[static_cast<std::size_t>(Format::exponent_index(key))];
    halves.low += static_cast<std::uint64_t>(square);
    halves.high += static_cast<std::uint64_t>(square >> 64);
  }

  // In units of 2^(2 * Format::least_exponent).
  Natural total() const {
    Natural sum;
    for (std::size_t i = 0; i < halves_.size(); ++i) {
      const int shift = 2 * static_cast<int>(i);
      if (halves_[i].low) sum += Natural(halves_[i].low).shifted(shift);
      if (halves_[i].high) sum += Natural(halves_[i].high).shifted(shift + 64);
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
