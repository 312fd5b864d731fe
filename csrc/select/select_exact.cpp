// A quickselect over layers, each of which is in order already. Scores are compared in doubles
// where their error bounds allow it, else in exact integers (Shewchuk, Adaptive precision
// floating-point arithmetic and fast robust geometric predicates, 1997).
#include "select/select_exact.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/big_uint.h"
#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/test_sizes.h"

namespace lampfast {
namespace {

// The open elements of one layer in ascending order, with their scores in doubles and, on request,
// exactly.
class OpenElements {
 public:
  OpenElements(Dtype dtype, const RankBounds& rank_bounds, const RankRange& range)
      : dtype_(dtype),
        rank_bounds_(&rank_bounds),
        first_(rank_bounds.at_rank(range.begin)),
        last_(rank_bounds.at_rank(range.end - 1)) {}

  struct Element {
    std::uint64_t key;
    double square;
    double sum_from;  // of the squares of this element and all later ones
    const ScoredInterval* interval;
    std::int64_t remaining;  // elements of the interval from this one on
  };

  Element at(std::int64_t position) const {
    const ScoredInterval* interval = rank_bounds_->at_rank(position);
    const std::int64_t remaining = interval->end() - position;
    const double square = rank_bounds_->square(interval->first);
    return {interval->first, square, interval->after + static_cast<double>(remaining) * square,
            interval, remaining};
  }

  const RankBounds& rank_bounds() const { return *rank_bounds_; }

  bool has_sums() const { return !exact_after_.empty(); }

  // Whether elements lie above the open ones, and the key that these are above of.
  bool has_more_above() const {
    const std::vector<ScoredInterval>& all = rank_bounds_->intervals();
    return last_ + 1 != all.data() + all.size();
  }
  std::uint64_t last_key() const { return last_->last; }

  // Takes the exact sum of what lies above the open intervals, and adds these from the top down,
  // keeping every spacing-th sum.
  void start_from(BigUint sum) {
    const ScoredInterval* interval = last_;
    for (; interval - first_ >= spacing; interval -= spacing) {
      exact_after_.push_back(sum);
      add_intervals(sum, interval, interval - spacing);
    }
    exact_after_.push_back(std::move(sum));
  }

  // Element::sum_from, exactly, in units of 2^(2 * least_exponent).
  BigUint exact_sum_from(const Element& element) const {
    const std::ptrdiff_t checkpoint = (last_ - element.interval) / spacing;
    BigUint sum = exact_after_[static_cast<std::size_t>(checkpoint)];
    add_intervals(sum, last_ - checkpoint * spacing, element.interval);
    sum += exact_squares(element.key, element.remaining);
    return sum;
  }

  // `other` times the exact square of a magnitude, in the units of `other` times those of
  // exact_sum_from.
  BigUint times_square(const BigUint& other, std::uint64_t key) const {
    const Decomposed magnitude = decompose(dtype_, key);
    const int least =
        with_format(dtype_, [](auto format) { return int{decltype(format)::least_exponent}; });
    return other.times(magnitude.mantissa)
        .times(magnitude.mantissa)
        .shifted(2 * (magnitude.exponent - least));
  }

 private:
  BigUint exact_squares(std::uint64_t key, std::int64_t count) const {
    return times_square(BigUint(static_cast<std::uint64_t>(count)), key);
  }

  // Adds the squares of the intervals from `last` down to the one just above `end`.
  void add_intervals(BigUint& sum, const ScoredInterval* last, const ScoredInterval* end) const {
    for (const auto* each = last; each > end; --each)
      sum += exact_squares(each->first, each->count);
  }

  static constexpr std::ptrdiff_t spacing = test_sizes ? 2 : 64;

  Dtype dtype_;
  const RankBounds* rank_bounds_;
  const ScoredInterval* first_;
  const ScoredInterval* last_;
  std::vector<BigUint> exact_after_;  // sums above every spacing-th interval, from last_ down
};

int compare_magnitudes(double a, double b) { return (a > b) - (a < b); }

// The open elements of all layers.
class OpenRanks {
 public:
  OpenRanks(Backends& backends, Ranking ranking, const std::vector<RankBounds>& rank_bounds,
            const std::vector<RankRange>& ranges)
      : backends_(backends), ranking_(ranking) {
    for (std::size_t i = 0; i < ranges.size(); ++i) {
      const RankRange& range = ranges[i];
      if (range.is_empty()) continue;
      layers_.push_back({i, {backends.layers()[i].dtype, rank_bounds[i], range}, range, 0});
      total_ += range.end - range.begin;
    }
  }

  // Moves the begin of every range in `ranges` behind its elements among the first `count`.
  void take_first(std::int64_t count, std::vector<RankRange>& ranges) {
    // A pivot divides every range at once, as each is in order.
    while (count > 0 && count < total_) {
      LayerRanks& pivot = layers_[choose_pivot()];
      const std::int64_t smaller = divide(pivot);
      const bool is_past_pivot = count > smaller;
      total_ = 0;
      for (LayerRanks& layer : layers_)
        (is_past_pivot ? layer.open.begin : layer.open.end) = layer.smaller;
      if (is_past_pivot) {
        count -= smaller + 1;
        ++pivot.open.begin;
      }
      for (const LayerRanks& layer : layers_) total_ += layer.open.end - layer.open.begin;
    }
    for (const LayerRanks& layer : layers_) {
      ranges[layer.id].begin = count > 0 ? layer.open.end : layer.open.begin;
    }
  }

 private:
  struct LayerRanks {
    std::size_t id;
    OpenElements elements;
    RankRange open;
    std::int64_t smaller;  // the first position that does not come before the pivot
  };

  // The layer and the position of a pseudo-random open element.
  std::size_t choose_pivot() {
    random_ = random_ * 6364136223846793005U + 1442695040888963407U;
    auto skip = static_cast<std::int64_t>((random_ >> 33) % static_cast<std::uint64_t>(total_));
    std::size_t layer = 0;
    const auto size = [&] { return layers_[layer].open.end - layers_[layer].open.begin; };
    for (; skip >= size(); ++layer) skip -= size();
    pivot_position_ = layers_[layer].open.begin + skip;
    return layer;
  }

  // Finds the elements of every range that come before the pivot; returns how many there are.
  std::int64_t divide(LayerRanks& pivot) {
    const OpenElements::Element element = pivot.elements.at(pivot_position_);
    std::int64_t smaller = 0;
    for (LayerRanks& layer : layers_) {
      layer.smaller = &layer == &pivot ? pivot_position_ : first_not_before(layer, pivot, element);
      smaller += layer.smaller - layer.open.begin;
    }
    return smaller;
  }

  std::int64_t first_not_before(LayerRanks& layer, LayerRanks& pivot,
                                const OpenElements::Element& element) {
    std::int64_t low = layer.open.begin;
    for (std::int64_t high = layer.open.end; low < high;) {
      const std::int64_t middle = low + (high - low) / 2;
      const int order = compare(layer, layer.elements.at(middle), pivot, element);
      const bool is_earlier = order < 0 || (order == 0 && layer.id < pivot.id);
      (is_earlier ? low : high) = is_earlier ? middle + 1 : middle;
    }
    return low;
  }

  int compare(LayerRanks& a, const OpenElements::Element& x, LayerRanks& b,
              const OpenElements::Element& y) {
    if (ranking_ != Ranking::magnitude) return compare_scores(a, x, b, y);
    return compare_magnitudes(a.elements.rank_bounds().magnitude(x.key),
                              b.elements.rank_bounds().magnitude(y.key));
  }

  // Negative, zero or positive as the score of x, an element of a, is less than, equal to or
  // greater than that of y, one of b. Cross-multiplied: x.square * y.sum_from against y.square *
  // x.sum_from.
  int compare_scores(LayerRanks& a, const OpenElements::Element& x, LayerRanks& b,
                     const OpenElements::Element& y) {
    if (x.key == 0 || y.key == 0) return (x.key != 0) - (y.key != 0);
    const double left = x.square * y.sum_from;
    const double right = y.square * x.sum_from;
    const double margin = std::max(a.elements.rank_bounds().margin(*x.interval),
                                   b.elements.rank_bounds().margin(*y.interval));
    const double smallest = std::min({x.square, y.square, left, right});
    if (std::abs(left - right) > margin * std::max(left, right) &&
        smallest > error_bounds::least_product) {
      return left < right ? -1 : 1;
    }
    if (!a.elements.has_sums() || !b.elements.has_sums()) sum_exactly(a, b);
    return BigUint::compare(a.elements.times_square(b.elements.exact_sum_from(y), x.key),
                            b.elements.times_square(a.elements.exact_sum_from(x), y.key));
  }

  // Reads layers once more to sum what lies above their open elements.
  void sum_exactly(const LayerRanks& a, const LayerRanks& b) {
    LayerIds ids;
    std::vector<std::uint64_t> keys;
    std::vector<OpenElements*> summed;
    for (LayerRanks& layer : layers_) {
      const bool is_needed = backends_.is_sharded() || layer.id == a.id || layer.id == b.id;
      if (!is_needed || layer.elements.has_sums()) continue;
      if (!layer.elements.has_more_above()) {
        layer.elements.start_from(BigUint());
        continue;
      }
      ids.push_back(layer.id);
      keys.push_back(layer.elements.last_key());
      summed.push_back(&layer.elements);
    }
    const std::vector<BigUint> sums = backends_.exact_sums_above(ids, keys);
    for (std::size_t i = 0; i < sums.size(); ++i) summed[i]->start_from(sums[i]);
  }

  Backends& backends_;
  Ranking ranking_;
  std::vector<LayerRanks> layers_;
  std::int64_t total_ = 0;  // open elements
  std::uint64_t random_ = 1;
  std::int64_t pivot_position_ = 0;
};

}  // namespace

std::vector<std::int64_t> select_exact(Backends& backends, const SelectionSpec& spec,
                                       const std::vector<RankBounds>& rank_bounds,
                                       const std::vector<RankRange>& ranges) {
  std::vector<RankRange> open = ranges;
  std::int64_t count = spec.count();
  for (const RankRange& range : open) count -= range.begin;
  OpenRanks(backends, spec.ranking, rank_bounds, open).take_first(count, open);
  std::vector<std::int64_t> pruned;
  pruned.reserve(open.size());
  for (const RankRange& range : open) pruned.push_back(range.begin);
  return pruned;
}

}  // namespace lampfast
