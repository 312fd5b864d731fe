// Which elements of a layer are drawn to tell of the whole: a piece from each of equal strata, at a
// scrambled place in it, so that no period of the weights can hide from the draw. (Statistics calls
// it a stratified cluster sample.)
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/host_device.h"
#include "core/strata.h"

namespace lampfast {

// Pieces are dealt to groups in pairs: how much the two groups of a pair differ tells how far the
// draw may be off. Pieces of neighbouring strata meet in a pair: otherwise what differs between the
// rows of a layer, all of which the draw sees, would pass for an error.
constexpr int draw_pairs = 16;
constexpr int draw_groups = 2 * draw_pairs;

class DrawnPieces {
 public:
  // About `wanted` elements of a layer of `size`, in pieces of at most `longest` elements.
  LAMPFAST_HOST_DEVICE DrawnPieces(std::int64_t size, std::int64_t wanted, std::int64_t longest)
      : size_(size) {
    length_ = wanted < size ? wanted / (4 * draw_groups) : longest;
    if (length_ > longest) length_ = longest;
    if (length_ < 1) length_ = 1;
    const std::int64_t places = (size + length_ - 1) / length_;
    count_ = (wanted + length_ - 1) / length_;
    if (count_ > places) count_ = places;
    if (count_ == 0) return;
    stratum_ = places / count_;
    longer_strata_ = places % count_;
  }

  LAMPFAST_HOST_DEVICE std::int64_t count() const { return count_; }
  LAMPFAST_HOST_DEVICE std::int64_t length() const { return length_; }
  LAMPFAST_HOST_DEVICE bool is_whole() const { return stratum_ == 1 && longer_strata_ == 0; }

  // The positions of a piece's elements, in the visiting order of strided_walk.h.
  LAMPFAST_HOST_DEVICE std::int64_t begin(std::int64_t piece) const {
    const bool is_longer = piece < longer_strata_;
    const std::int64_t first = piece * stratum_ + (is_longer ? piece : longer_strata_);
    const std::int64_t places = stratum_ + (is_longer ? 1 : 0);
    return (first + scramble(static_cast<std::uint64_t>(piece), places)) * length_;
  }
  LAMPFAST_HOST_DEVICE std::int64_t end(std::int64_t begin) const {
    return begin + length_ < size_ ? begin + length_ : size_;
  }

  // Which of the two groups of its pair a piece goes to is scrambled too: in a layer that is sorted
  // all first ones would be smaller.
  LAMPFAST_HOST_DEVICE static int group(std::int64_t piece) {
    const auto seed = static_cast<std::uint64_t>(piece / 2);
    const auto swap = static_cast<int>((seed * 0x9e3779b97f4a7c15) >> 63);
    return static_cast<int>(seed % draw_pairs) * 2 + (static_cast<int>(piece % 2) ^ swap);
  }

 private:
  std::int64_t size_;
  std::int64_t length_ = 1;
  std::int64_t count_ = 0;
  std::int64_t stratum_ = 1;        // how many pieces would fit a stratum
  std::int64_t longer_strata_ = 0;  // and the first so many strata have room for one more
};

}  // namespace lampfast
