// What a histogram tells of its layer: how counts and sums of squares change with the magnitude,
// and how far that may be off.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/intervals.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/log_histogram.h"
#include "core/test_sizes.h"

namespace lampfast {

constexpr double most_score = 2.0;  // above all scores

// What a histogram may be off at the estimated threshold: variances of the count of elements below,
// and of the logarithm of the sum of squares above.
struct Errors {
  double density = 0.0;    // elements per unit of log magnitude
  double steepness = 2.0;  // d log score / d log magnitude
  double count = 0.0;
  double sum = 0.0;
  double both = 0.0;  // their covariance: what is drawn below is not drawn above

  double flow() const { return density / steepness; }  // elements per unit of log score
  // Of the count below a given score, which a larger sum moves up, alone and with the sum.
  double count_at_score() const {
    return std::max(count + flow() * (2.0 * both + flow() * sum), 0.0);
  }
  double count_with_sum() const { return both + flow() * sum; }
};

// Within a bin, elements are taken to be spread evenly.
class EmpiricalCdf {
 public:
  EmpiricalCdf() = default;
  EmpiricalCdf(const Layer& layer, const LogHistogram& histogram, double scale)
      : dtype_(layer.dtype),
        scale_(scale),
        size_(static_cast<double>(layer.size)),
        drawn_(static_cast<double>(histogram.drawn)),
        weight_(size_ / drawn_) {
    if (drawn_ == histogram.counts[0]) return;
    with_format(dtype_, [&](auto format) { add_up<decltype(format)>(histogram); });
    if (!is_tied_ && last_ > 1) trim();
  }

  // Nothing is known of a layer in which all that was drawn is zero, or as good as zero.
  bool is_known() const { return !edges_.empty(); }
  // Of all elements that are not as good as zero.
  double lowest_score() const {
    return is_known() ? edges_[1].square() / (weight_ * edges_[1].tail) : most_score;
  }
  // Layers that have it in common are copies of each other. Finite also where another thread has
  // made weights larger than the scale allows for, as totals are sorted.
  double total() const {
    const double total = is_known() ? edges_[0].tail : 0.0;
    return std::isfinite(total) ? total : 0.0;
  }

  void start_search() { low_ = 0, end_ = last_ + 1; }

  // How many elements score no more than one that the search has not left out.
  double look_at(double score) {
    if (!is_known()) return size_;
    at_ = position_at(score, low_, end_);
    return weight_ * rank(at_);
  }

  // Leaves out what is below the score that was looked at, or what is above it.
  void narrow(bool is_too_low) { (is_too_low ? low_ : end_) = at_.bin + (is_too_low ? 0 : 1); }

  // At the score that was last looked at.
  Errors errors(double score) const {
    Errors errors;
    if (!is_known()) return errors;
    const std::size_t bin = std::max<std::size_t>(at_.bin, 1);
    if (at_.bin > 0 || lowest_score() < 1.25 * score) errors.density = density_around(bin);
    // Of the largest elements few are drawn or none: as much may be missing.
    double squares = 0.0;
    double fourth_powers = std::pow(edges_.back().square(), 2.0);
    for (std::size_t s = bin; s <= last_; ++s) {
      const double elements = (s == at_.bin ? 1.0 - at_.part : 1.0) * count(s, s + 1);
      const double middle = (double{edges_[s].magnitude} + edges_[s + 1].magnitude) / 2.0;
      squares += elements * (middle * middle);
      fourth_powers += elements * (middle * middle) * (middle * middle);
    }
    squares = std::max(squares, edges_[bin].square());
    errors.steepness += edges_[at_.bin].square() * errors.density / (squares * weight_);

    const double open = open_part();
    const double below = below_part(at_);
    const double spread = fourth_powers / (squares * squares);
    const double rough = roughness(bin);
    errors.count = count_variance(at_);
    // A sum of a few draws may be off by more, but then those left beside an interval are enough.
    constexpr double most = 0.125;
    errors.sum = std::clamp((drawn_ * spread - 1.0) * open, 0.0, most);
    errors.sum += (spread + rough * rough) / 1024.0;  // squares are not all in their bins' middles
    errors.both = -size_ * below * open;
    return errors;
  }

  // The keys with these scores, and a few draws on either side.
  KeyInterval interval(double low_score, double high_score) const {
    if (!is_known()) return everything();
    return interval_of_ranks(rank(position_at(low_score, 0, last_ + 1)),
                             rank(position_at(high_score, 0, last_ + 1)));
  }

  // The keys of the elements that are about the count-th.
  KeyInterval interval_of_count(double count) const {
    if (!is_known()) return everything();
    const double rank = count / weight_;
    const double error =
        interval_deviations * std::sqrt(count_variance(position_of(rank))) / weight_;
    return interval_of_ranks(rank - error, rank + error);
  }

  // The magnitudes of what was drawn, but for what is as good as zero, end here.
  double least_magnitude() const { return edges_[1].magnitude / scale_; }
  double largest_magnitude() const { return edges_.back().magnitude / scale_; }

  // How many elements have a smaller magnitude, and the variance of that number.
  double count_below(double magnitude) const {
    return is_known() ? weight_ * rank(position_below(magnitude)) : size_;
  }
  double count_variance_below(double magnitude) const {
    return is_known() ? count_variance(position_below(magnitude)) : 0.0;
  }

 private:
  // Where a bin begins.
  struct Edge {
    float magnitude;  // scaled
    float below;      // the draws up to here
    double tail;      // and the sum of squares from here on

    double square() const { return double{magnitude} * magnitude; }
  };

  struct Position {
    std::size_t bin = 0;
    double part = 1.0;  // of the bin's elements
  };

  // The first bin has all that is as good as zero; the last edge is the end of all.
  template <class Format>
  void add_up(const LogHistogram& histogram) {
    using Key = typename Format::Storage;
    constexpr int shift = histogram_shift<Format>();
    constexpr std::uint64_t half = (std::uint64_t{1} << shift) >> 1;
    const auto value = [&](std::size_t bin, std::uint64_t more) {
      const double magnitude =
          Format::value(static_cast<Key>(((histogram.first + bin) << shift) + more));
      return sizeof(Key) == 8 ? magnitude * scale_ : magnitude;
    };
    is_tied_ = shift == 0;
    std::size_t top = histogram.counts.size() - 1;
    while (histogram.counts[top] == 0) --top;
    std::array<Edge, LogHistogram::bins + 1> edges;
    const double begin = value(top, 0);
    // Between two 8-bit floats there is nothing, so any position does as the end.
    const double end = is_tied_ ? begin * (1.0 + 0x1p-4) : 2.0 * value(top, half) - begin;
    double upper = std::min(end, double{std::numeric_limits<float>::max()});
    double tail = 0.0;
    auto below = static_cast<int>(histogram.drawn);
    edges[top + 1] = {static_cast<float>(upper), static_cast<float>(below), tail};
    std::size_t bin = top;
    for (; below > histogram.counts[0]; --bin) {
      const double lower = value(bin, 0);
      const double middle = is_tied_ ? lower : (lower + upper) / 2.0;
      tail += histogram.counts[bin] * (middle * middle);
      below -= histogram.counts[bin];
      edges[bin] = {static_cast<float>(lower), static_cast<float>(below), tail};
      upper = lower;
    }
    edges[bin] = {0.0F, 0.0F, tail};
    edges_.assign(edges.data() + bin, edges.data() + top + 2);
    last_ = top - bin;
  }

  // The smallest and the largest elements fill only a part of their bins, in which they are about
  // as dense as in the next ones.
  void trim() {
    const double least = std::min(density(1) / density(2), 1.0);
    const double most = std::min(density(last_) / density(last_ - 1), 1.0);
    edges_[1].magnitude = edges_[2].magnitude - static_cast<float>(least * width(1));
    edges_[last_ + 1].magnitude = edges_[last_].magnitude + static_cast<float>(most * width(last_));
  }

  double count(std::size_t from, std::size_t to) const {
    return double{edges_[to].below} - edges_[from].below;
  }

  double width(std::size_t bin) const {
    return double{edges_[bin + 1].magnitude} - edges_[bin].magnitude;
  }

  double density(std::size_t bin) const { return count(bin, bin + 1) / width(bin); }

  // On logarithms, and over as few bins as hold a few draws.
  double density_around(std::size_t bin) const {
    constexpr double few = 16.0;
    std::size_t low = bin;
    std::size_t high = bin + 1;
    do {
      low = std::max<std::size_t>(low - 1, 1);
      high = std::min(high + 1, last_ + 1);
    } while (count(low, high) < few && (low > 1 || high <= last_));
    const double ratio = double{edges_[high].magnitude} / edges_[low].magnitude;
    return weight_ * count(low, high) / std::log(ratio);
  }

  double rank(const Position& position) const {
    return edges_[position.bin].below + position.part * count(position.bin, position.bin + 1);
  }

  // Zeros are told apart by being below.
  KeyInterval everything() const { return {1, not_finite_key(dtype_)}; }

  // A few draws more on either side.
  KeyInterval interval_of_ranks(double low_rank, double high_rank) const {
    constexpr double room = test_sizes ? 1.0 : 8.0;
    KeyInterval interval = everything();
    const Position low = position_of(low_rank - room);
    if (low.bin > 0) {
      const double least = magnitude(low) - roughness(low.bin) * width(low.bin);
      interval.low = std::max<std::uint64_t>(nearest_key(dtype_, least / scale_), 1);
    }
    // The layer may have elements beyond the largest that was drawn.
    if (high_rank + room < drawn_) {
      const Position high = position_of(high_rank + room);
      const double most = magnitude(high) + roughness(high.bin) * width(high.bin);
      // The first that is kept may have the key that follows that of the last pruned one.
      const std::uint64_t end = nearest_key(dtype_, most / scale_) + (is_tied_ ? 1 : 2);
      interval.high = std::max(std::min(end, interval.high), interval.low);
    }
    return interval;
  }

  // What is drawn has no errors of its own; for each draw, its part of the layer has so much more.
  double open_part() const {
    const double rest = 1.0 - (1.0 - 1.0 / (3.0 * weight_)) / weight_;
    return (weight_ > 1.0 ? rest : 0.0) / drawn_;
  }

  double below_part(const Position& position) const {
    return (rank(position) + 0.5) / (drawn_ + 1.0);
  }

  double count_variance(const Position& position) const {
    const std::size_t bin = std::max<std::size_t>(position.bin, 1);
    const double below = below_part(position);
    const double misplaced =
        roughness(bin) * weight_ * count(bin, bin + 1) * (position.bin > 0 ? 0.5 : 0.0);
    return size_ * size_ * below * (1.0 - below) * open_part() + misplaced * misplaced;
  }

  double magnitude(const Position& position) const {
    return edges_[position.bin].magnitude + position.part * width(position.bin);
  }

  Position position_of(double rank) const {
    const auto next =
        std::upper_bound(edges_.begin() + 1, edges_.end() - 1, rank,
                         [](double wanted, const Edge& edge) { return wanted < edge.below; });
    const auto bin = static_cast<std::size_t>(next - edges_.begin()) - 1;
    const double part = (rank - edges_[bin].below) / count(bin, bin + 1);
    return {bin, part < 1.0 ? part : 1.0};
  }

  Position position_below(double magnitude) const {
    const double scaled = magnitude * scale_;
    const auto next =
        std::upper_bound(edges_.begin() + 1, edges_.end() - 1, scaled,
                         [](double wanted, const Edge& edge) { return wanted < edge.magnitude; });
    const auto bin = static_cast<std::size_t>(next - edges_.begin()) - 1;
    if (bin == 0) return {};
    return {bin, std::clamp((scaled - edges_[bin].magnitude) / width(bin), 0.0, 1.0)};
  }

  // Which of the bins [bin, end) has the score.
  Position position_at(double score, std::size_t bin, std::size_t end) const {
    const double per_draw = score * weight_;
    while (end - bin > 1) {
      const std::size_t middle = bin + (end - bin) / 2;
      const Edge& edge = edges_[middle];
      const bool is_reached = edge.square() <= per_draw * edge.tail;
      bin = is_reached ? middle : bin;
      end = is_reached ? end : middle;
    }
    if (bin == 0) return {0, 1.0};
    const Edge& edge = edges_[bin];
    const Edge& next = edges_[bin + 1];
    const double rise = is_tied_ ? 0.0 : next.square() - edge.square();
    const double fall = per_draw * (edge.tail - next.tail);
    const double part = (per_draw * edge.tail - edge.square()) / (rise + fall);
    return {bin, part < 1.0 ? part : 1.0};
  }

  // How far, in bins, elements may be from being spread evenly, as the differences between a bin
  // and its neighbours tell: from little where the density is a smooth curve to a bin where it has
  // gaps.
  double roughness(std::size_t bin) const {
    if (is_tied_) return 0.0;
    if (last_ < 2) return 1.0;
    const double here = density(bin);
    const double before = bin > 1 ? density(bin - 1) : here;
    const double after = bin < last_ ? density(bin + 1) : here;
    const double mean = (before + here + after) / 3.0;
    const double slope = std::abs(after - before) / mean;
    const double bend = std::abs(here - (before + after) / 2.0) / mean;
    const double chance = 1.0 / std::sqrt(mean * width(bin));
    const double trimmed = bin > 1 && bin < last_ ? 0.0 : 4.0 * chance;
    const double rough = 0x1p-5 + slope / 16.0 + 2.0 * std::max(bend - 2.5 * chance, 0.0) + trimmed;
    return rough < 1.0 ? rough : 1.0;
  }

  Dtype dtype_ = Dtype::float32;
  bool is_tied_ = false;  // whether all elements of a bin are equal
  double scale_ = 1.0;
  double size_ = 0.0;
  double drawn_ = 0.0;
  double weight_ = 0.0;  // elements of the layer for each that was drawn
  std::vector<Edge> edges_;
  std::size_t last_ = 0;  // bin
  std::size_t low_ = 0;   // the bins that the search has left: [low, end)
  std::size_t end_ = 0;
  Position at_;
};

}  // namespace lampfast
