// Bisects for the scores at which sets of tiles certainly no longer go, and certainly stay.
#include "select/tile_sets.h"

namespace lampfast {
namespace {

std::int64_t size_until(const TileSets& sets, const std::vector<double>& bounds, double score,
                        bool includes_equal) {
  const auto end = includes_equal ? std::upper_bound(bounds.begin(), bounds.end(), score)
                                  : std::lower_bound(bounds.begin(), bounds.end(), score);
  return sets.before[static_cast<std::size_t>(end - bounds.begin())];
}

// The smallest non-negative double for which a predicate holds that goes on to hold; infinity if
// there is none below that.
template <class Predicate>
double first_score(const Predicate& holds) {
  std::uint64_t low = 0;
  std::uint64_t high = Float64::not_finite;
  while (low < high) {
    const std::uint64_t middle = low + (high - low) / 2;
    if (holds(Float64::value(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return Float64::value(high);
}

}  // namespace

std::vector<OpenSets> cut(const std::vector<const TileSets*>& all, std::int64_t budget) {
  const double too_many = first_score([&](double score) {
    std::int64_t size = 0;
    for (const TileSets* sets : all) size += size_until(*sets, sets->least, score, true);
    return size > budget;
  });
  const double enough = first_score([&](double score) {
    std::int64_t size = 0;
    for (const TileSets* sets : all) size += size_until(*sets, sets->most, score, false);
    return size >= budget;
  });
  const auto position = [](const std::vector<double>& bounds, double score) {
    const auto at = std::lower_bound(bounds.begin(), bounds.end(), score);
    return static_cast<std::size_t>(at - bounds.begin());
  };
  std::vector<OpenSets> open;
  for (const TileSets* sets : all) {
    const std::size_t begin = position(sets->most, too_many);
    open.push_back({begin, std::max(begin, position(sets->least, enough))});
  }
  return open;
}

}  // namespace lampfast
