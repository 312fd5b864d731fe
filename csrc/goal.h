// What select is asked for: how the layers' elements are ranked, and how many of the first go.
#pragma once

#include <cstdint>
#include <numeric>
#include <vector>

namespace lampfast {

enum class Ranking : std::uint8_t {
  lamp,        // all layers together by the LAMP score
  magnitude,   // all layers together by the magnitude
  each_apart,  // each layer by itself: the LAMP score and the magnitude say the same
};

struct Goal {
  Ranking ranking;
  std::vector<std::int64_t> counts;  // one per layer where each is apart, else one

  std::int64_t count() const {
    return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  }
};

}  // namespace lampfast
