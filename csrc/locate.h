// Locate: rigorous bounds on the score at which the pruned elements end.
#pragma once

#include <cstdint>
#include <vector>

#include "profile.h"

namespace lampfast {

// The positions [begin, end) of a layer's order whose place in the global order is still open.
struct Window {
  std::int64_t begin;
  std::int64_t end;
};

// Narrows a range, and each layer's window for it, as far as the profiles' bounds allow. Both must
// hold; {0, size} does for every window, and the default (or of_magnitudes) for the range. What
// they tell is kept, so that neither ever grows. Returns the score at which the pruned elements
// probably end.
double locate(const std::vector<Profile>& profiles, std::int64_t count, ScoreRange& range,
              std::vector<Window>& windows);

}  // namespace lampfast
