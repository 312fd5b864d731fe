// How the scores of a bucket's magnitudes, in ascending order, are computed on a processor.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "cpu/kernels.h"
#include "double_score.h"
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

}  // namespace lampfast
