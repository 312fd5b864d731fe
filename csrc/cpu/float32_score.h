// LAMP scores of float32 magnitudes, in host memory.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/compensated_sum.h"
#include "core/error_bounds.h"
#include "core/float64_score.h"
#include "core/key_format.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {

// Squares of float32 magnitudes are exact in a double, and sums of a few of them nearly so.
class Float32Score {
 public:
  using Format = Float32;
  using Score = float;
  using Total = CompensatedSum;

  explicit Float32Score(std::uint32_t) {}

  // The sum of the squares of magnitudes in any order.
  Total total(const std::uint32_t* keys, std::size_t count) const {
    constexpr std::size_t leaf = error_bounds::most_plain_terms;
    // Independent sums, as an addition waits for the one before it.
    constexpr std::size_t chains = 8;
    CompensatedSum sum;
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

  // Writes the bits of the scores of sorted magnitudes, each to its place. `after` is the sum of
  // the squares of all larger magnitudes, and then includes these.
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
  static constexpr std::size_t block = score_block;

  ScoreKeys score_keys_ = score_keys();
};

}  // namespace lampfast::cpu
