// Sets of tiles with bounds on their scores: which of them go, and which stay, whatever the scores
// turn out to be (docs/exactness.md, section 11, lemma 8).
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <vector>

#include "core/key_format.h"

namespace lampfast {

// Sets of a layer's tiles with bounds on their scores, which rise from set to set.
struct TileSets {
  std::vector<double> least;
  std::vector<double> most;
  std::vector<std::int64_t> before{0};  // the weights of all earlier sets; one entry more

  void add(double lower, double upper, std::int64_t size) {
    least.push_back(least.empty() ? lower : std::max(lower, least.back()));
    most.push_back(upper);
    before.push_back(before.back() + size);
  }

  // Upper bounds that rise, too.
  void finish() {
    for (std::size_t s = most.size(); s-- > 1;) most[s - 1] = std::min(most[s - 1], most[s]);
  }
};

// The sets that are neither certain to go nor certain to stay.
struct OpenSets {
  std::size_t begin;
  std::size_t end;
};

// What goes and what stays whichever way the open scores turn out. A set goes if all that may come
// before its last tile, that tile included, fits the budget; and it stays if what certainly comes
// before its first tile fills the budget.
std::vector<OpenSets> cut(const std::vector<const TileSets*>& all, std::int64_t budget);

}  // namespace lampfast
