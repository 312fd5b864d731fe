// A small sample of a layer, in order of magnitude, and what it tells of the layer's threshold.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <tuple>
#include <utility>
#include <vector>

#include "core/key_format.h"
#include "core/layer.h"
#include "core/test_sizes.h"
#include "cpu/radix_sort.h"
#include "cpu/sampling/blocks.h"
#include "cpu/sampling/margins.h"

namespace lampfast::cpu {

// Longer blocks would wait less for the memory, but neighbouring weights are often alike.
constexpr std::int64_t longest_sample_block = 16;
constexpr std::int64_t least_sample = test_sizes ? 4 : groups;
constexpr std::int64_t most_sample = test_sizes ? 64 : 1 << 15;
constexpr std::int64_t least_sample_of_all_layers = test_sizes ? 8 : 1 << 12;
constexpr std::int64_t least_ranks = test_sizes ? 1 : 4;  // of the sample, in half an interval

// The sample's share of a layer, one of layers with `total` weights: its entries take 12 bytes each
// while they are sorted, whatever the dtype.
inline std::int64_t sample_size(const Layer& layer, std::int64_t total) {
  const double part =
      static_cast<double>(layer.size) / static_cast<double>(std::max(total, std::int64_t{1}));
  const std::int64_t share =
      std::max(layer.size * item_size(layer.dtype) / 2048,
               static_cast<std::int64_t>(part * static_cast<double>(least_sample_of_all_layers)));
  return std::min(layer.size, std::clamp(share, least_sample, most_sample));
}

class Sample {
 public:
  Sample() = default;
  Sample(const Layer& layer, std::int64_t total, double scale)
      : dtype_(layer.dtype), scale_(scale) {
    const std::int64_t wanted = sample_size(layer, total);
    const Blocks blocks(layer.size, wanted, longest_sample_block);
    const std::uint64_t end = not_finite_key(layer.dtype);
    while (end >> dropped_bits_ >> (32 - group_bits) != 0) ++dropped_bits_;
    entries_.reserve(static_cast<std::size_t>(wanted + longest_sample_block));
    with_format(layer.dtype, [&](auto format) { draw<decltype(format)>(layer, blocks); });
    std::vector<std::uint32_t> other(entries_.size());
    const std::uint32_t* sorted = radix_sort(entries_.data(), other.data(), entries_.size(), 32,
                                             [](std::uint32_t entry) { return entry; });
    if (sorted != entries_.data()) entries_.swap(other);
    with_format(layer.dtype, [&](auto format) { add_up<decltype(format)>(); });
    weight_ = size() > 0 ? static_cast<double>(layer.size) / static_cast<double>(size()) : 0.0;
    complete_ = size() == layer.size;
  }

  std::int64_t size() const { return static_cast<std::int64_t>(entries_.size()); }

  // How many ranks have an estimated score of at most t, which is known to be within [low, high].
  std::int64_t at_most(double t, std::int64_t low, std::int64_t high) const {
    while (low < high) {
      const std::int64_t middle = low + (high - low) / 2;
      const bool holds = square(middle) <= t * weight_ * sum_from(middle);
      (holds ? low : high) = holds ? middle + 1 : middle;
    }
    return low;
  }

  bool is_complete() const { return complete_; }

  // Zero beyond the last rank.
  double magnitude(std::int64_t rank) const { return rank < size() ? value(rank) : 0.0; }

  double elements(std::int64_t rank) const { return weight_ * static_cast<double>(rank); }

  // Whether so many elements equal a rank's that the errors of the sample do not lead out of them.
  bool is_tied(std::int64_t rank) const {
    const auto [first, end] = ties(rank);
    return std::min(rank - first, end - rank) > error_of_rank();
  }

  // Whether, as far as those errors lead, elements become more with the magnitude by little and
  // little, so that counts tell magnitudes.
  bool is_smooth(std::int64_t rank) const {
    constexpr int least_steps = 8;
    const std::int64_t from = rank - error_of_rank();
    const std::int64_t to = std::min(rank + error_of_rank(), size() - 1);
    if (from < first_above_zero()) return false;
    int steps = 0;
    for (std::int64_t i = from; i < to && steps < least_steps; ++i) {
      if (key(i) != key(i + 1)) ++steps;
    }
    return steps == least_steps;
  }

  Response response(std::int64_t rank) const {
    Split split;
    // Equal magnitudes at the threshold count in proportion, or else their order, which is by
    // group, would look like a difference between groups.
    std::int64_t first_tie;
    std::int64_t end_tie;
    std::tie(first_tie, end_tie) = ties(rank);
    const double tied = static_cast<double>(rank - first_tie) /
                        static_cast<double>(std::max<std::int64_t>(end_tie - first_tie, 1));
    with_format(dtype_, [&](auto format) {
      for (std::int64_t i = 0; i < size(); ++i) {
        const std::size_t group = entries_[index(i)] % groups;
        const double share = i < first_tie ? 1.0 : i < end_tie ? tied : 0.0;
        split.drawn[group] += 1.0;
        split.below[group] += share;
        if (i >= first_tie) split.sum_from[group] += (1.0 - share) * square<decltype(format)>(i);
      }
    });
    Response result;
    split.errors(elements(size()), result);
    const std::int64_t reach = std::max(least_ranks, size() / 64);
    const std::int64_t to = std::min(rank + reach, size() - 1);
    const std::int64_t from = std::min(std::max(rank - reach, first_above_zero()), to);
    const double low = value(from);
    const double high = value(to);
    const double sum_above = std::max(weight_ * sum_from(rank), square(to));
    if (low > 0.0 && high > low && sum_above > 0.0) {
      result.density = elements(to - from) / std::log(high / low);
      result.steepness += square(std::min(rank, to)) * result.density / sum_above;
    }
    return result;
  }

  // The keys within `log_margin` of the threshold, and a few ranks of the sample on either side.
  KeyInterval interval(std::int64_t rank, double log_margin) const {
    std::uint64_t low = 1;  // zeros are told apart by being below every interval
    std::uint64_t high = not_finite_key(dtype_);
    if (is_tied(rank)) {
      low = std::max(low, key(rank));
      high = key(rank) + cell();
    } else if (std::isfinite(log_margin)) {
      const std::int64_t low_rank = rank - least_ranks;
      const std::int64_t high_rank = rank + least_ranks;
      if (low_rank >= 0) {
        low = std::max(low, std::min(key(low_rank), shifted(rank, -log_margin)));
      }
      if (high_rank < size()) {
        high = std::min(high, std::max(key(high_rank), shifted(rank, log_margin)) + cell());
      }
    }
    return {low, std::max(low, high)};
  }

 private:
  std::int64_t error_of_rank() const {
    return static_cast<std::int64_t>(1.5 * std::sqrt(static_cast<double>(size())));
  }

  // The ranks [first, end) whose key is that of `rank`; none beyond the last rank.
  std::pair<std::int64_t, std::int64_t> ties(std::int64_t rank) const {
    if (rank >= size()) return {rank, rank};
    return {first_not_less(key(rank)), first_not_less(key(rank) + cell())};
  }

  std::int64_t first_above_zero() const { return first_not_less(cell()); }

  std::int64_t first_not_less(std::uint64_t wanted) const {
    const auto found =
        std::partition_point(entries_.begin(), entries_.end(),
                             [&](std::uint32_t entry) { return entry_key(entry) < wanted; });
    return found - entries_.begin();
  }

  static std::size_t index(std::int64_t i) { return static_cast<std::size_t>(i); }

  template <class Format>
  void add_up() {
    for (std::int64_t i = 0; i < size(); ++i) total_ += square<Format>(i);
    tails_.resize(entries_.size() + 1);
    double sum = 0.0;
    for (std::int64_t i = size(); i-- > 0;) {
      sum += square<Format>(i);
      if (total_ > 0.0) tails_[index(i)] = static_cast<float>(sum / total_);
    }
  }

  template <class Format>
  void draw(const Layer& layer, const Blocks& blocks) {
    using Key = typename Format::Storage;
    for_each_drawn(layer, reinterpret_cast<const Key*>(layer.data), blocks, 0, blocks.count(),
                   [&](std::size_t group, const Key* data, std::int64_t step, std::int64_t length) {
                     for (std::int64_t i = 0; i < length; ++i) {
                       // What is not finite is the partition's to report.
                       const std::uint64_t magnitude = std::min<std::uint64_t>(
                           Format::key(data[i * step]), Format::not_finite - 1);
                       entries_.push_back(static_cast<std::uint32_t>(
                           (magnitude >> dropped_bits_ << group_bits) | group));
                     }
                   });
  }

  // How many keys share an entry.
  std::uint64_t cell() const { return std::uint64_t{1} << dropped_bits_; }
  std::uint64_t entry_key(std::uint32_t entry) const {
    return std::uint64_t{entry >> group_bits} << dropped_bits_;
  }
  std::uint64_t key(std::int64_t i) const { return entry_key(entries_[index(i)]); }
  double sum_from(std::int64_t rank) const { return total_ * tails_[index(rank)]; }
  template <class Format>
  double square(std::int64_t i) const {
    return scaled_square<Format>(static_cast<typename Format::Storage>(key(i)), scale_);
  }
  double square(std::int64_t i) const { return scaled_square_of(dtype_, key(i), scale_); }
  double value(std::int64_t i) const { return magnitude_of(dtype_, key(i)); }

  // The key whose magnitude is about e^distance times that of a rank: near a key, each step of the
  // key moves the magnitude by 1 in as many as its mantissa counts.
  std::uint64_t shifted(std::int64_t rank, double distance) const {
    const std::uint64_t at = key(std::clamp<std::int64_t>(rank, 0, size() - 1));
    const double steps = distance * static_cast<double>(decompose(dtype_, at).mantissa);
    const double moved = static_cast<double>(at) + steps + std::copysign(1.0, distance);
    return static_cast<std::uint64_t>(
        std::clamp(moved, 0.0, static_cast<double>(not_finite_key(dtype_) - 1)));
  }

  Dtype dtype_ = Dtype::float32;
  double scale_ = 1.0;
  double weight_ = 0.0;  // elements of the layer for each of the sample
  double total_ = 0.0;   // of the sample's squares
  bool complete_ = false;
  int dropped_bits_ = 0;
  std::vector<std::uint32_t> entries_;  // the key's leading bits, and the group below them
  std::vector<float> tails_;            // the share of the total from each rank on
};

}  // namespace lampfast::cpu
