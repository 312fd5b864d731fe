#include "resolve.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "exact_sum.h"
#include "magnitude.h"
#include "tiny.h"

namespace lampfast {
namespace {

// One layer's open elements in their order, with their scores: in doubles, and exactly when asked.
class Sequence {
 public:
  Sequence(Places& places, std::size_t layer, const Profile& profile, const Window& window)
      : layer_(layer),
        dtype_(places.job().layers[layer].dtype),
        place_(&places.of(layer)),
        profile_(&profile),
        first_(profile.step_at(window.begin)),
        last_(profile.step_at(window.end - 1)) {}

  struct Element {
    std::uint64_t key;
    double square;
    double sum_from;  // of the squares of this element and all later ones
    const Step* run;
    std::int64_t remaining;  // elements of the run from this one on
  };

  Element at(std::int64_t position) const {
    const Step* run = profile_->step_at(position);
    const std::int64_t remaining = run->end() - position;
    const double square = profile_->square(run->first);
    return {run->first, square, run->after + static_cast<double>(remaining) * square, run,
            remaining};
  }

  // sum_from in units of 2^(2 * least_exponent).
  Natural exact_sum_from(const Element& element) {
    if (exact_after_.empty()) sum_exactly();
    const std::ptrdiff_t checkpoint = (last_ - element.run) / spacing;
    Natural sum = exact_after_[static_cast<std::size_t>(checkpoint)];
    add_runs(sum, last_ - checkpoint * spacing, element.run);
    sum += exact_squares(element.key, element.remaining);
    return sum;
  }

  // The exact square of a magnitude times `other`, in the same units as `other` times those of
  // exact_sum_from.
  Natural times_square(const Natural& other, std::uint64_t key) const {
    const Decomposed magnitude = decompose(dtype_, key);
    const int least =
        with_format(dtype_, [](auto format) { return int{decltype(format)::least_exponent}; });
    return other.times(magnitude.mantissa)
        .times(magnitude.mantissa)
        .shifted(2 * (magnitude.exponent - least));
  }

 private:
  Natural exact_squares(std::uint64_t key, std::int64_t count) const {
    return times_square(Natural(static_cast<std::uint64_t>(count)), key);
  }

  // Adds the squares of the runs from `last` down to the one above `end`.
  void add_runs(Natural& sum, const Step* last, const Step* end) const {
    for (const Step* run = last; run > end; --run) sum += exact_squares(run->first, run->count);
  }

  // One more read of the layer, for what lies above the open runs; these are then added up.
  void sum_exactly() {
    const Step* end = profile_->steps().data() + profile_->steps().size();
    Natural sum;
    if (last_ + 1 != end) sum = place_->exact_sum_above(layer_, last_->last);
    const Step* run = last_;
    for (; run - first_ >= spacing; run -= spacing) {
      exact_after_.push_back(sum);
      add_runs(sum, run, run - spacing);
    }
    exact_after_.push_back(sum);
  }

  std::size_t layer_;
  Dtype dtype_;
  Place* place_;
  const Profile* profile_;
  const Step* first_;
  const Step* last_;
  // What lies above every so many runs, from last_ down.
  static constexpr std::ptrdiff_t spacing = tiny ? 2 : 64;
  std::vector<Natural> exact_after_;
};

// Negative, zero or positive as the score of `a` is less than, equal to or greater than that of
// `b`.
int compare_scores(Sequence& a, const Sequence::Element& x, Sequence& b,
                   const Sequence::Element& y) {
  if (x.key == 0 || y.key == 0) return (x.key != 0) - (y.key != 0);
  const double left = x.square * y.sum_from;
  const double right = y.square * x.sum_from;
  // Beyond the sums' errors, and far from where products lose digits to underflow.
  constexpr double margin = 0x1p-36;
  constexpr double safe = 0x1p-900;
  const bool decided = std::abs(left - right) > margin * std::max(left, right);
  if (decided && x.square > safe && y.square > safe && left > safe && right > safe) {
    return left < right ? -1 : 1;
  }
  return Natural::compare(a.times_square(b.exact_sum_from(y), x.key),
                          b.times_square(a.exact_sum_from(x), y.key));
}

int compare_magnitudes(double a, double b) { return (a > b) - (a < b); }

}  // namespace

std::vector<std::int64_t> resolve(Places& places, Ranking ranking,
                                  const std::vector<Profile>& profiles,
                                  const std::vector<Window>& windows, std::int64_t count) {
  struct Open {
    std::size_t layer;
    Sequence sequence;
    std::int64_t begin;
    std::int64_t end;
    std::int64_t smaller;  // positions before this one come before the pivot
  };
  std::vector<Open> open;
  std::int64_t total = 0;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const Window& window = windows[i];
    if (window.begin == window.end) continue;
    open.push_back({i, {places, i, profiles[i], window}, window.begin, window.end, 0});
    total += window.end - window.begin;
  }

  const auto compare = [&](Open& a, const Sequence::Element& x, Open& b,
                           const Sequence::Element& y) {
    if (ranking != Ranking::magnitude) return compare_scores(a.sequence, x, b.sequence, y);
    return compare_magnitudes(profiles[a.layer].magnitude(x.key),
                              profiles[b.layer].magnitude(y.key));
  };

  // Quickselect over all sequences at once: a pivot halves them, as each is already in order.
  std::uint64_t random = 1;
  while (count > 0 && count < total) {
    random = random * 6364136223846793005U + 1442695040888963407U;
    auto skip = static_cast<std::int64_t>((random >> 33) % static_cast<std::uint64_t>(total));
    auto pivot = open.begin();
    for (; skip >= pivot->end - pivot->begin; ++pivot) skip -= pivot->end - pivot->begin;
    const std::int64_t pivot_position = pivot->begin + skip;
    const Sequence::Element pivot_element = pivot->sequence.at(pivot_position);

    std::int64_t smaller = 0;
    for (auto other = open.begin(); other != open.end(); ++other) {
      other->smaller = pivot_position;
      if (other != pivot) {
        std::int64_t low = other->begin;
        for (std::int64_t high = other->end; low < high;) {
          const std::int64_t middle = low + (high - low) / 2;
          const int order = compare(*other, other->sequence.at(middle), *pivot, pivot_element);
          const bool earlier = order < 0 || (order == 0 && other->layer < pivot->layer);
          (earlier ? low : high) = earlier ? middle + 1 : middle;
        }
        other->smaller = low;
      }
      smaller += other->smaller - other->begin;
    }

    total = 0;
    for (Open& each : open) {
      (count <= smaller ? each.end : each.begin) = each.smaller;
    }
    if (count > smaller) {
      count -= smaller + 1;
      ++pivot->begin;
    }
    for (const Open& each : open) total += each.end - each.begin;
  }

  std::vector<std::int64_t> chosen(windows.size(), 0);
  for (const Open& each : open) {
    chosen[each.layer] = (count > 0 ? each.end : each.begin) - windows[each.layer].begin;
  }
  return chosen;
}

}  // namespace lampfast
