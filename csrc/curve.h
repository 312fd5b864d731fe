// What a sketch tells of its layer: how counts and sums of squares change with the magnitude, and
// how far that may be off.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "layer.h"
#include "magnitude.h"
#include "margins.h"
#include "sketch.h"
#include "tiny.h"

namespace lampfast {

constexpr double most_score = 2.0;  // above all scores

// What a sketch may be off at the guessed threshold: variances of the count of elements below, and
// of the logarithm of the sum of squares above.
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

// Within a slot, elements are taken to be spread evenly.
class Curve {
 public:
  Curve() = default;
  Curve(const Layer& layer, const Sketch& sketch, double scale)
      : dtype_(layer.dtype),
        scale_(scale),
        size_(static_cast<double>(layer.size)),
        drawn_(static_cast<double>(sketch.drawn)),
        weight_(size_ / drawn_) {
    if (drawn_ == sketch.counts[0]) return;
    with_format(dtype_, [&](auto format) { add_up<decltype(format)>(sketch); });
    if (!is_tied_ && last_ > 1) trim();
  }

  // Nothing is known of a layer in which all that was drawn is zero, or as good as zero.
  bool is_known() const { return !edges_.empty(); }
  // Of all elements that are not as good as zero.
  double lowest_score() const {
    return is_known() ? edges_[1].square() / (weight_ * edges_[1].tail) : most_score;
  }
  // Layers that have it in common are copies of each other.
  double total() const { return is_known() ? edges_[0].tail : 0.0; }

  void start_search() { low_ = 0, end_ = last_ + 1; }

  // How many elements score no more than one that the search has not left out.
  double look_at(double score) {
    if (!is_known()) return size_;
    at_ = place_at(score, low_, end_);
    return weight_ * rank(at_);
  }

  // Leaves out what is below the score that was looked at, or what is above it.
  void narrow(bool is_too_low) { (is_too_low ? low_ : end_) = at_.slot + (is_too_low ? 0 : 1); }

  // At the score that was last looked at.
  Errors errors(double score) const {
    Errors errors;
    if (!is_known()) return errors;
    const std::size_t slot = std::max<std::size_t>(at_.slot, 1);
    if (at_.slot > 0 || lowest_score() < 1.25 * score) errors.density = density_around(slot);
    // Of the largest elements few are drawn or none: as much may be missing.
    double squares = 0.0;
    double fourth_powers = std::pow(edges_.back().square(), 2.0);
    for (std::size_t s = slot; s <= last_; ++s) {
      const double elements = (s == at_.slot ? 1.0 - at_.part : 1.0) * count(s, s + 1);
      const double middle = (double{edges_[s].magnitude} + edges_[s + 1].magnitude) / 2.0;
      squares += elements * (middle * middle);
      fourth_powers += elements * (middle * middle) * (middle * middle);
    }
    squares = std::max(squares, edges_[slot].square());
    errors.steepness += edges_[at_.slot].square() * errors.density / (squares * weight_);

    const double open = open_part();
    const double below = below_part(at_);
    const double spread = fourth_powers / (squares * squares);
    const double rough = roughness(slot);
    errors.count = count_variance(at_);
    // A sum of a few draws may be off by more, but then those left beside a bracket are enough.
    constexpr double most = 0.125;
    errors.sum = std::clamp((drawn_ * spread - 1.0) * open, 0.0, most);
    errors.sum += (spread + rough * rough) / 1024.0;  // squares are not all in their slots' middles
    errors.both = -size_ * below * open;
    return errors;
  }

  // The keys with these scores, and a few draws on either side.
  Bracket bracket(double low_score, double high_score) const {
    if (!is_known()) return everything();
    return bracket_of_ranks(rank(place_at(low_score, 0, last_ + 1)),
                            rank(place_at(high_score, 0, last_ + 1)));
  }

  // The keys of the elements that are about the count-th.
  Bracket bracket_of_count(double count) const {
    if (!is_known()) return everything();
    const double rank = count / weight_;
    const double error = Margins::deviations * std::sqrt(count_variance(place_of(rank))) / weight_;
    return bracket_of_ranks(rank - error, rank + error);
  }

  // The magnitudes of what was drawn, but for what is as good as zero, end here.
  double least_magnitude() const { return edges_[1].magnitude / scale_; }
  double largest_magnitude() const { return edges_.back().magnitude / scale_; }

  // How many elements have a smaller magnitude, and the variance of that number.
  double count_below(double magnitude) const {
    return is_known() ? weight_ * rank(place_below(magnitude)) : size_;
  }
  double count_variance_below(double magnitude) const {
    return is_known() ? count_variance(place_below(magnitude)) : 0.0;
  }

 private:
  // Where a slot begins.
  struct Edge {
    float magnitude;  // scaled
    float below;      // the draws up to here
    double tail;      // and the sum of squares from here on

    double square() const { return double{magnitude} * magnitude; }
  };

  struct Place {
    std::size_t slot = 0;
    double part = 1.0;  // of the slot's elements
  };

  // The first slot has all that is as good as zero; the last edge is the end of all.
  template <class Format>
  void add_up(const Sketch& sketch) {
    using Key = typename Format::Storage;
    constexpr int shift = sketch_shift<Format>();
    constexpr std::uint64_t half = (std::uint64_t{1} << shift) >> 1;
    const auto value = [&](std::size_t slot, std::uint64_t more) {
      const double magnitude =
          Format::value(static_cast<Key>(((sketch.first + slot) << shift) + more));
      return sizeof(Key) == 8 ? magnitude * scale_ : magnitude;
    };
    is_tied_ = shift == 0;
    std::size_t top = sketch.counts.size() - 1;
    while (sketch.counts[top] == 0) --top;
    std::array<Edge, Sketch::slots + 1> edges;
    const double begin = value(top, 0);
    // Between two 8-bit floats there is nothing, so any place does as the end.
    const double end = is_tied_ ? begin * (1.0 + 0x1p-4) : 2.0 * value(top, half) - begin;
    double upper = std::min(end, double{std::numeric_limits<float>::max()});
    double tail = 0.0;
    auto below = static_cast<int>(sketch.drawn);
    edges[top + 1] = {static_cast<float>(upper), static_cast<float>(below), tail};
    std::size_t slot = top;
    for (; below > sketch.counts[0]; --slot) {
      const double lower = value(slot, 0);
      const double middle = is_tied_ ? lower : (lower + upper) / 2.0;
      tail += sketch.counts[slot] * (middle * middle);
      below -= sketch.counts[slot];
      edges[slot] = {static_cast<float>(lower), static_cast<float>(below), tail};
      upper = lower;
    }
    edges[slot] = {0.0F, 0.0F, tail};
    edges_.assign(edges.data() + slot, edges.data() + top + 2);
    last_ = top - slot;
  }

  // The smallest and the largest elements fill only a part of their slots, in which they are about
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

  double width(std::size_t slot) const {
    return double{edges_[slot + 1].magnitude} - edges_[slot].magnitude;
  }

  double density(std::size_t slot) const { return count(slot, slot + 1) / width(slot); }

  // On logarithms, and over as few slots as hold a few draws.
  double density_around(std::size_t slot) const {
    constexpr double few = 16.0;
    std::size_t low = slot;
    std::size_t high = slot + 1;
    do {
      low = std::max<std::size_t>(low - 1, 1);
      high = std::min(high + 1, last_ + 1);
    } while (count(low, high) < few && (low > 1 || high <= last_));
    const double ratio = double{edges_[high].magnitude} / edges_[low].magnitude;
    return weight_ * count(low, high) / std::log(ratio);
  }

  double rank(const Place& place) const {
    return edges_[place.slot].below + place.part * count(place.slot, place.slot + 1);
  }

  // Zeros are told apart by being below.
  Bracket everything() const { return {1, not_finite_key(dtype_)}; }

  // A few draws more on either side.
  Bracket bracket_of_ranks(double low_rank, double high_rank) const {
    constexpr double room = tiny ? 1.0 : 8.0;
    Bracket bracket = everything();
    const Place low = place_of(low_rank - room);
    if (low.slot > 0) {
      const double least = magnitude(low) - roughness(low.slot) * width(low.slot);
      bracket.low = std::max<std::uint64_t>(nearest_key(dtype_, least / scale_), 1);
    }
    // The layer may have elements beyond the largest that was drawn.
    if (high_rank + room < drawn_) {
      const Place high = place_of(high_rank + room);
      const double most = magnitude(high) + roughness(high.slot) * width(high.slot);
      // The first that is kept may have the key that follows that of the last pruned one.
      const std::uint64_t end = nearest_key(dtype_, most / scale_) + (is_tied_ ? 1 : 2);
      bracket.high = std::max(std::min(end, bracket.high), bracket.low);
    }
    return bracket;
  }

  // What is drawn has no errors of its own; for each draw, its part of the layer has so much more.
  double open_part() const {
    const double rest = 1.0 - (1.0 - 1.0 / (3.0 * weight_)) / weight_;
    return (weight_ > 1.0 ? rest : 0.0) / drawn_;
  }

  double below_part(const Place& place) const { return (rank(place) + 0.5) / (drawn_ + 1.0); }

  double count_variance(const Place& place) const {
    const std::size_t slot = std::max<std::size_t>(place.slot, 1);
    const double below = below_part(place);
    const double misplaced =
        roughness(slot) * weight_ * count(slot, slot + 1) * (place.slot > 0 ? 0.5 : 0.0);
    return size_ * size_ * below * (1.0 - below) * open_part() + misplaced * misplaced;
  }

  double magnitude(const Place& place) const {
    return edges_[place.slot].magnitude + place.part * width(place.slot);
  }

  Place place_of(double rank) const {
    const auto next =
        std::upper_bound(edges_.begin() + 1, edges_.end() - 1, rank,
                         [](double wanted, const Edge& edge) { return wanted < edge.below; });
    const auto slot = static_cast<std::size_t>(next - edges_.begin()) - 1;
    const double part = (rank - edges_[slot].below) / count(slot, slot + 1);
    return {slot, part < 1.0 ? part : 1.0};
  }

  Place place_below(double magnitude) const {
    const double scaled = magnitude * scale_;
    const auto next =
        std::upper_bound(edges_.begin() + 1, edges_.end() - 1, scaled,
                         [](double wanted, const Edge& edge) { return wanted < edge.magnitude; });
    const auto slot = static_cast<std::size_t>(next - edges_.begin()) - 1;
    if (slot == 0) return {};
    return {slot, std::clamp((scaled - edges_[slot].magnitude) / width(slot), 0.0, 1.0)};
  }

  // Which of the slots [slot, end) has the score.
  Place place_at(double score, std::size_t slot, std::size_t end) const {
    const double per_draw = score * weight_;
    while (end - slot > 1) {
      const std::size_t middle = slot + (end - slot) / 2;
      const Edge& edge = edges_[middle];
      const bool is_reached = edge.square() <= per_draw * edge.tail;
      slot = is_reached ? middle : slot;
      end = is_reached ? end : middle;
    }
    if (slot == 0) return {0, 1.0};
    const Edge& edge = edges_[slot];
    const Edge& next = edges_[slot + 1];
    const double rise = is_tied_ ? 0.0 : next.square() - edge.square();
    const double fall = per_draw * (edge.tail - next.tail);
    const double part = (per_draw * edge.tail - edge.square()) / (rise + fall);
    return {slot, part < 1.0 ? part : 1.0};
  }

  // How far, in slots, elements may be from being spread evenly, as the differences between a slot
  // and its neighbours tell: from little where the density is a smooth curve to a slot where it has
  // gaps.
  double roughness(std::size_t slot) const {
    if (is_tied_) return 0.0;
    if (last_ < 2) return 1.0;
    const double here = density(slot);
    const double before = slot > 1 ? density(slot - 1) : here;
    const double after = slot < last_ ? density(slot + 1) : here;
    const double mean = (before + here + after) / 3.0;
    const double slope = std::abs(after - before) / mean;
    const double bend = std::abs(here - (before + after) / 2.0) / mean;
    const double chance = 1.0 / std::sqrt(mean * width(slot));
    const double trimmed = slot > 1 && slot < last_ ? 0.0 : 4.0 * chance;
    const double rough = 0x1p-5 + slope / 16.0 + 2.0 * std::max(bend - 2.5 * chance, 0.0) + trimmed;
    return rough < 1.0 ? rough : 1.0;
  }

  Dtype dtype_ = Dtype::float32;
  bool is_tied_ = false;  // whether all elements of a slot are equal
  double scale_ = 1.0;
  double size_ = 0.0;
  double drawn_ = 0.0;
  double weight_ = 0.0;  // elements of the layer for each that was drawn
  std::vector<Edge> edges_;
  std::size_t last_ = 0;  // slot
  std::size_t low_ = 0;   // the slots that the search has left: [low, end)
  std::size_t end_ = 0;
  Place at_;
};

}  // namespace lampfast
