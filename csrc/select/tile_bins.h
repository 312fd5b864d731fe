// Bins of tiles' sums of squares: what they hold, and the bounds on scores that follow from it.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/test_sizes.h"
#include "exchange_tiles.h"
#include "select/tile_sets.h"

namespace lampfast {

// Bins of equal width in the logarithm, so that a bin's number is made of a double's first bits.
// The first one holds all that is smaller, down to `low`; sums from `high` on are only added up.
class TileBins {
 public:
  TileBins() = default;

  // At most so many bins for the sums in [low, high), of which none above 0 is below `smallest`.
  TileBins(double low, double high, double smallest, std::size_t most) : low_(low), high_(high) {
    const double from = std::max({low, smallest, high * reach, error_bounds::least_tile_sum});
    const auto first = bit_cast<std::uint64_t>(from);
    const std::uint64_t last = bit_cast<std::uint64_t>(high) - 1;
    while ((last >> shift_) - (first >> shift_) >= most) ++shift_;
    first_ = first >> shift_;
    bins.resize(static_cast<std::size_t>((last >> shift_) - first_) + 1);
  }

  // Every edge but the first is then a normal number, far above those that underflow.
  static bool are_good_up_to(double high) { return high > error_bounds::least_tile_sum * 0x1p100; }

  struct Bin {
    std::int64_t size = 0;  // the weights of its tiles
    double sum = 0.0;
  };

  std::int64_t count() const { return static_cast<std::int64_t>(bins.size()); }
  double low() const { return low_; }
  double high() const { return high_; }
  // Whether these bins tell more sums apart.
  bool are_finer_than(const TileBins& other) const { return shift_ < other.shift_; }

  // Tells the bin of a sum in [low, high).
  auto place() const {
    return [first = first_, shift = shift_](double sum) {
      const std::uint64_t key = bit_cast<std::uint64_t>(sum) >> shift;
      return key <= first ? 0 : static_cast<std::size_t>(key - first);
    };
  }

  // The least sum of a bin, or what follows the last one.
  double edge(std::int64_t bin) const {
    if (bin <= 0) return low_;
    if (bin >= count()) return high_;
    return bit_cast<double>((first_ + static_cast<std::uint64_t>(bin)) << shift_);
  }

  void add(const std::vector<Bin>& other) {
    for (std::size_t b = 0; b < bins.size(); ++b) {
      bins[b].size += other[b].size;
      bins[b].sum += other[b].sum;
    }
  }

  // The sum of a bin for an exchange between ranks. Each rank cuts off less than a unit. A sum has
  // 2^44 units or more, except in a first bin from 0 on, which counts only beside the next one.
  RangedSum ranged_sum(std::int64_t bin) const {
    const bool is_rest = bin == 0 && low_ == 0.0;
    const int least = std::ilogb(is_rest ? edge(1) : edge(bin)) - (is_rest ? 76 : precision);
    return {bins[static_cast<std::size_t>(bin)].sum, least, std::ilogb(edge(bin + 1)) + most_tiles};
  }

  // That of what lies from `high` on, with terms up to `largest`.
  static RangedSum ranged_above(double above, double high, double largest) {
    return {above, std::ilogb(high) - precision, std::ilogb(std::max(high, largest)) + most_tiles};
  }

  // The order of sums is open where these lie close together, and so a tile may come before some of
  // the bin below its own, but not before those of the bin below that.
  TileSets sets(bool by_score, double above) const {
    constexpr double margin = error_bounds::score_from_bins;
    std::vector<double> from(bins.size() + 2, 0.0);
    from[bins.size()] = above;
    for (std::size_t b = bins.size(); b-- > 0;) from[b] = from[b + 1] + bins[b].sum;
    TileSets sets;
    for (std::size_t b = 0; b < bins.size(); ++b) {
      const auto bin = static_cast<std::int64_t>(b);
      const double least = edge(bin);
      const double most = edge(bin + 1);
      // Beside the first bin there may be sums that are not known here.
      const bool is_bounded = b > 0 && least > 0.0;
      const double low = by_score && is_bounded ? least / std::max(from[b - 1], least) : least;
      const double high = by_score ? most / (most + from[b + 2]) : most;
      sets.add(is_bounded ? low * (1.0 - margin) : 0.0, high * (1.0 + margin), bins[b].size);
    }
    sets.finish();
    return sets;
  }

  std::vector<Bin> bins;

 private:
  static constexpr double reach = test_sizes ? 0x1p-8 : 0x1p-32;
  // Bins are wider than the distance within which the order of two tiles is open.
  static constexpr int finest_shift = Float64::mantissa_bits - 30;
  static_assert(0x1p-30 > 2.0 * error_bounds::score_from_tiles);
  static constexpr int precision = 44;
  static_assert(error_bounds::exchanged_sum == 0x1p-44);
  static constexpr int most_tiles = 35;
  static_assert(error_bounds::most_layer_elements <= std::int64_t{1} << (most_tiles - 2));

  double low_ = 0.0;
  double high_ = 0.0;
  std::uint64_t first_ = 0;
  int shift_ = finest_shift;
};

}  // namespace lampfast
