// How numbers of all kinds are put into the words of 64 bits that ranks send each other.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/big_uint.h"
#include "core/intervals.h"
#include "core/key_format.h"

namespace lampfast {

using Words = std::vector<std::int64_t>;

// What a message begins with: how many ranks have failed, how many met an element that is not
// finite, and a hash of what was asked, which must be the same on all ranks.
constexpr std::size_t failed = 0;
constexpr std::size_t not_finite = 1;
constexpr std::size_t question_asked = 2;
constexpr std::size_t header_size = 3;

inline Words message() { return Words(header_size, 0); }

// FNV-1a, word by word.
class Hash {
 public:
  Hash& add(std::uint64_t word) {
    value_ = (value_ ^ word) * 0x100000001b3;
    return *this;
  }
  Hash& add(double number) { return add(bit_cast<std::uint64_t>(number)); }
  Hash& add(const KeyInterval& interval) { return add(interval.low).add(interval.high); }
  std::uint64_t value() const { return value_; }

 private:
  std::uint64_t value_ = 0xcbf29ce484222325;
};

// Throws if a hash of what was asked, added up over all ranks, was not the same on all.
inline void check_question(std::int64_t sum, std::uint64_t question, std::size_t ranks) {
  if (static_cast<std::uint64_t>(sum) == question * ranks) return;
  throw std::runtime_error(
      "ranks have taken different decisions from the same findings, as processors of different "
      "kinds may; gather the model on one of them and prune it there");
}

// Non-negative doubles below 2^most as multiples of 2^least: digits of 32 bits each in a word, so
// that those of 2^31 ranks add up. What is smaller is cut off.
class FixedPoint {
 public:
  FixedPoint(int least, int most)
      : least_(std::max(least, -1000)), digits_((most - least_ + 31) / 32) {}

  void put(double value, Words& words) const {
    constexpr double most_digit = 0xffffffff;
    for (int d = digits_; d-- > 0;) {
      const double unit = std::ldexp(1.0, least_ + 32 * d);
      // Sums for estimates, and those of weights that change meanwhile, may be too large.
      const double digit = value >= 0.0 ? std::fmin(std::floor(value / unit), most_digit) : 0.0;
      words.push_back(static_cast<std::int64_t>(digit));
      value -= digit * unit;
    }
  }

  double get(const std::int64_t*& from) const {
    double value = 0.0;
    for (int d = digits_; d-- > 0;) {
      value += static_cast<double>(*from++) * std::ldexp(1.0, least_ + 32 * d);
    }
    return value;
  }

  std::size_t words() const { return static_cast<std::size_t>(digits_); }

 private:
  int least_;
  int digits_;
};

// Two counts in a word; neither, added up over all ranks, reaches 2^32.
inline void put_pairs(const std::vector<std::int64_t>& counts, Words& words) {
  for (std::size_t i = 0; i < counts.size(); i += 2) {
    const std::int64_t second = i + 1 < counts.size() ? counts[i + 1] : 0;
    words.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(second) << 32 |
                                              static_cast<std::uint64_t>(counts[i])));
  }
}

inline std::vector<std::int64_t> get_pairs(std::size_t size, const std::int64_t*& from) {
  std::vector<std::int64_t> counts(size);
  for (std::size_t i = 0; i < size; i += 2) {
    const auto pair = static_cast<std::uint64_t>(*from++);
    counts[i] = static_cast<std::int64_t>(pair & 0xffffffff);
    if (i + 1 < size) counts[i + 1] = static_cast<std::int64_t>(pair >> 32);
  }
  return counts;
}

inline std::vector<std::int64_t> get_words(std::size_t size, const std::int64_t*& from) {
  const std::int64_t* const begin = std::exchange(from, from + size);
  return {begin, from};
}

// The lowest limbs of float64 sums, which are multiples of the least square, are usually 0.
inline void put_limbs(const BigUint& number, Words& words) {
  const std::vector<std::uint64_t>& limbs = number.limbs();
  const auto begin = std::find_if(limbs.begin(), limbs.end(), [](auto limb) { return limb != 0; });
  words.insert(words.end(), {begin - limbs.begin(), limbs.end() - begin});
  for (auto limb = begin; limb != limbs.end(); ++limb) {
    words.push_back(static_cast<std::int64_t>(*limb));
  }
}

inline BigUint get_limbs(const std::int64_t*& from) {
  std::vector<std::uint64_t> limbs(static_cast<std::size_t>(*from++), 0);
  const auto size = static_cast<std::size_t>(*from++);
  const std::int64_t* const begin = std::exchange(from, from + size);
  limbs.insert(limbs.end(), begin, from);
  return BigUint(std::move(limbs));
}

inline std::string bytes_of(const Words& words) {
  return {reinterpret_cast<const char*>(words.data()), words.size() * sizeof(std::int64_t)};
}

inline Words words_of(const std::string& bytes) {
  Words words(bytes.size() / sizeof(std::int64_t));
  if (!words.empty()) std::memcpy(words.data(), bytes.data(), words.size() * sizeof(std::int64_t));
  return words;
}

}  // namespace lampfast
