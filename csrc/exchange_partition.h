// What ranks send each other of a partition: counts of bins, sums of squares where these do not
// follow from the counts, and the smallest and largest keys of crowded bins.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "backend.h"
#include "core/error_bounds.h"
#include "core/function_ref.h"
#include "core/key_format.h"
#include "core/test_sizes.h"
#include "exchange.h"
#include "exchange_words.h"

namespace lampfast {

// The bins that partitions are brought to. The more there are, the fewer rounds it takes to tell
// keys apart, but only counts are small enough for so many.
constexpr std::int64_t bins_with_sums = test_sizes ? 8 : 256;
constexpr std::int64_t bins_of_counts = test_sizes ? 8 : 512;

// What a partition of one layer sends, and in what units. The sum of a bin's squares is needed only
// where its keys are so different that their count does not tell it.
class PartitionFormat {
 public:
  // At most so many bins, which every backend has, of any rank.
  PartitionFormat(const Layer& layer, const PartitionRequest& request, std::int64_t most_bins)
      : dtype_(layer.dtype),
        scale_(request.scale),
        tracks_min_max_(request.track_min_max),
        has_pairs_(layer.size >> 32 == 0) {
    const KeyInterval& interval = request.interval;
    blank_ = Partition(interval, std::min(bins_of_counts, most_bins));
    unevenness_ = unevenness();
    if (is_by_key()) return;
    has_sums_ = !(unevenness_ <= error_bounds::most_unevenness);  // it may be NaN
    if (has_sums_) blank_ = Partition(interval, std::min(bins_with_sums, most_bins));
  }

  // Nothing found yet.
  const Partition& blank() const { return blank_; }

  // The most keys, of so many in all bins, that a bin has unless it is crowded.
  std::int64_t most_uncrowded(std::int64_t inside) const {
    if (is_by_key()) return inside;
    if (tracks_min_max_) return 0;
    if (inside <= most_exchanged_keys) return inside;  // their keys will be known anyway
    return has_sums_ ? inside - inside / 4 : inside / 16;
  }

  bool is_by_key() const { return blank_.bin_bits == 0; }
  bool tracks_min_max() const { return tracks_min_max_; }

  void put(const Partition& found, bool is_stored, Words& words) const {
    put_sides(found.sides, words);
    words.push_back(is_stored ? 0 : 1);
    std::vector<std::int64_t> counts;
    for (const Bin& bin : found.bins) counts.push_back(bin.count);
    if (has_pairs_) {
      put_pairs(counts, words);
    } else {
      words.insert(words.end(), counts.begin(), counts.end());
    }
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      if (has_sums_) bin_format(b).put(found.bins[b].sum, words);
    }
  }

  // Two counts, and a sum.
  std::size_t words_of_sides() const { return 2 + above_format().words(); }

  void put_sides(const Sides& sides, Words& words) const {
    words.insert(words.end(), {sides.below, sides.above});
    above_format().put(sides.above_sum.value(), words);
  }

  // Adds what was put.
  void get_sides(const std::int64_t*& from, Sides& sides) const {
    sides.below += *from++;
    sides.above += *from++;
    sides.above_sum.add(above_format().get(from));
  }

  PartitionResult get(const std::int64_t*& from) const {
    PartitionResult result{blank_, true};
    get_sides(from, result.found.sides);
    result.is_stored = *from++ == 0;
    std::vector<Bin>& bins = result.found.bins;
    const std::vector<std::int64_t> counts =
        has_pairs_ ? get_pairs(bins.size(), from) : get_words(bins.size(), from);
    for (std::size_t b = 0; b < bins.size(); ++b) {
      bins[b].count = counts[b];
      if (has_sums_) bins[b].sum = bin_format(b).get(from);
    }
    if (!has_sums_ && !is_by_key()) add_counted_sums(result.found);
    return result;
  }

  // Adds what a piece has, in bins that are not wider.
  void add(const Partition& found, Partition& sum) const {
    sum.sides.add(found.sides);
    const int bits = sum.bin_bits - found.bin_bits;
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      const Bin& bin = found.bins[b];
      if (bin.count == 0) continue;
      Bin& wider = sum.bins[b >> bits];
      const std::uint64_t width = std::uint64_t{1} << found.bin_bits;
      const std::uint64_t begin = (b & ((std::size_t{1} << bits) - 1)) * width;
      wider.widen(begin + bin.first, begin + std::min(bin.last, width - 1));
      wider.count += bin.count;
      wider.sum += bin.sum;
    }
  }

 private:
  // The exponent of the scaled square of a key. In a float64 layer the largest square is near 1.
  int exponent(std::uint64_t key) const {
    const double square =
        scaled_square_of(dtype_, std::clamp<std::uint64_t>(key, 1, most_key()), scale_);
    if (dtype_ == Dtype::float64 && square > 1.0) return 1;
    return square > 0.0 ? std::ilogb(square) : least_exponent;
  }
  std::uint64_t most_key() const { return not_finite_key(dtype_) - 1; }

  // How much larger, relative to it, a square may be than the smallest one of its bin. In the
  // normal range a bin is at most 2^(bin_bits - mantissa_bits) of its keys' magnitude wide; below
  // that range the first bin is the widest one.
  double unevenness() const {
    const int mantissa =
        with_format(dtype_, [](auto format) { return int{decltype(format)::mantissa_bits}; });
    const double width = 1.0 + std::ldexp(1.0, blank_.bin_bits - mantissa);
    const Squares first = squares(0);
    return std::max(first.last / first.first, width * width) - 1.0;
  }

  // The squares of a bin's smallest and largest keys.
  struct Squares {
    double first;
    double last;
  };
  Squares squares(std::size_t b) const {
    const KeyInterval& interval = blank_.sides.interval;
    const std::uint64_t begin = interval.low + (b << blank_.bin_bits);
    const std::uint64_t width = std::uint64_t{1} << blank_.bin_bits;
    const std::uint64_t end = std::min(begin + width, std::max(interval.high, begin + 1));
    return {scaled_square_of(dtype_, begin, scale_), scaled_square_of(dtype_, end - 1, scale_)};
  }

  // Takes every key of a bin for the middle of its squares, which is wrong by less than half of the
  // unevenness, of the part of all sums that lies in bins.
  void add_counted_sums(Partition& found) const {
    double inside = 0.0;
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      if (found.bins[b].count == 0) continue;
      const auto [first, last] = squares(b);
      found.bins[b].sum = static_cast<double>(found.bins[b].count) * (first + (last - first) / 2.0);
      inside += found.bins[b].sum;
    }
    const double all = inside + found.sides.above_sum.value();
    found.counted_error = inside > 0.0 ? unevenness_ * (inside / all) : 0.0;
  }

  // All that is above has at least the square of the interval's end. If a float64 layer has
  // anything there, it has its largest weight.
  FixedPoint above_format() const {
    const int least = exponent(blank_.sides.interval.high);
    const int useful = dtype_ == Dtype::float64 ? std::max(least, -64) : least;
    return {useful - precision, exponent(most_key()) + most_elements + 1};
  }

  FixedPoint bin_format(std::size_t b) const {
    const std::uint64_t begin = blank_.sides.interval.low + (b << blank_.bin_bits);
    const std::uint64_t last = begin + ((std::uint64_t{1} << blank_.bin_bits) - 1);
    return {exponent(begin) - bin_precision, exponent(last) + most_elements + 1};
  }

  // Each rank that has an element cuts off less than a unit, and each element has at least
  // 2^precision units.
  static constexpr int precision = 44;
  static constexpr int bin_precision = 36;
  static_assert(error_bounds::exchanged_sum == 0x1p-44);
  static_assert(error_bounds::exchanged_bin_sum == 0x1p-36);
  static constexpr int most_elements = 33;
  static_assert(error_bounds::most_layer_elements == std::int64_t{1} << most_elements);
  static constexpr int least_exponent =
      -900;  // of squares that matter, error_bounds::least_product

  Dtype dtype_;
  double scale_;
  bool tracks_min_max_;
  bool has_pairs_;  // whether two counts fit in a word
  Partition blank_;
  double unevenness_ = 0.0;
  bool has_sums_ = false;
};

// Finds the smallest and largest keys of crowded bins. Such a bin often holds one key only, or keys
// in a range that is far smaller than the bin. Where bins are octaves wide, many are crowded
// anyway, and only one that holds most of the keys is worth an exchange. Nor is it worth one for a
// few layers of many, which had better be narrowed together with the others.
inline void bound_crowded(const std::vector<PartitionFormat>& formats,
                          const std::vector<PartitionResult>& own,
                          std::vector<PartitionResult>& results, FunctionRef<void(Words&)> max) {
  const auto for_each_crowded = [&](const auto& body) {
    for (std::size_t p = 0; p < results.size(); ++p) {
      const std::vector<Bin>& bins = results[p].found.bins;
      const std::int64_t few = formats[p].most_uncrowded(results[p].found.inside());
      for (std::size_t b = 0; b < bins.size(); ++b) {
        if (bins[b].count > few) body(p, b);
      }
    }
  };
  // Keys relative to the bin's end, counted down, and relative to its begin.
  Words words = message();
  const auto last_of = [&](std::size_t p) {
    return (std::int64_t{1} << results[p].found.bin_bits) - 1;
  };
  std::vector<bool> is_crowded(results.size(), false);
  for_each_crowded([&](std::size_t p, std::size_t b) {
    is_crowded[p] = true;
    const Bin& bin = own[p].found.bins[b];
    const auto first = static_cast<std::int64_t>(bin.first);
    words.push_back(bin.count == 0 ? -1 : last_of(p) - first);
    words.push_back(bin.count == 0 ? -1 : static_cast<std::int64_t>(bin.last));
  });
  constexpr std::ptrdiff_t most_layers_per_crowded = 4;
  const auto crowded = std::count(is_crowded.begin(), is_crowded.end(), true);
  const bool is_wanted =
      std::any_of(formats.begin(), formats.end(),
                  [](const PartitionFormat& format) { return format.tracks_min_max(); });
  const auto layers = static_cast<std::ptrdiff_t>(results.size());
  if (crowded == 0 || (!is_wanted && crowded * most_layers_per_crowded < layers)) return;
  max(words);
  const std::int64_t* from = words.data() + header_size;
  for_each_crowded([&](std::size_t p, std::size_t b) {
    Bin& bin = results[p].found.bins[b];
    bin.first = static_cast<std::uint64_t>(last_of(p) - *from++);
    bin.last = static_cast<std::uint64_t>(*from++);
  });
}

}  // namespace lampfast
