// Arbitrary-precision unsigned integers, for the few comparisons that doubles cannot decide.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/uint128.h"

namespace lampfast {

class BigUint {
 public:
  BigUint() = default;
  explicit BigUint(Uint128 value)
      : limbs_{static_cast<std::uint64_t>(value), static_cast<std::uint64_t>(value >> 64)} {
    trim();
  }
  explicit BigUint(std::vector<std::uint64_t> limbs) : limbs_(std::move(limbs)) { trim(); }

  // Least significant first; the last one is not zero.
  const std::vector<std::uint64_t>& limbs() const { return limbs_; }

  BigUint& operator+=(const BigUint& other) {
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

  BigUint times(std::uint64_t factor) const {
    BigUint product;
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

  BigUint times(const BigUint& other) const {
    BigUint product;
    for (std::size_t i = 0; i < other.limbs_.size(); ++i) {
      product += times(other.limbs_[i]).shifted(64 * static_cast<int>(i));
    }
    return product;
  }

  BigUint shifted(int bits) const {
    const auto words = static_cast<std::size_t>(bits / 64);
    BigUint result = times(std::uint64_t{1} << (bits % 64));
    if (!result.limbs_.empty()) result.limbs_.insert(result.limbs_.begin(), words, 0);
    return result;
  }

  // Negative, zero or positive as a is less than, equal to or greater than b.
  static int compare(const BigUint& a, const BigUint& b) {
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

  std::vector<std::uint64_t> limbs_;
};

}  // namespace lampfast
