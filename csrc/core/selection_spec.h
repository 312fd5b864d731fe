// The selection that a call asks for: how elements are ranked, and how many of the first are
// pruned.
#pragma once

#include <cstddef>
#include <cstdint>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/error_bounds.h"
#include "core/layer.h"

namespace lampfast {

enum class Ranking : std::uint8_t {
  lamp,       // all layers together by the LAMP score
  magnitude,  // all layers together by the magnitude
  per_layer,  // each layer by itself: LAMP score and magnitude give the same order
};

struct SelectionSpec {
  Ranking ranking = Ranking::lamp;
  std::vector<std::int64_t> counts;  // one per layer if the ranking is per_layer, else one

  SelectionSpec() = default;
  SelectionSpec(Ranking how, std::vector<std::int64_t> how_many)
      : ranking(how), counts(std::move(how_many)) {}

  std::int64_t count() const {
    return std::accumulate(counts.begin(), counts.end(), std::int64_t{0});
  }

  // Throws std::invalid_argument if a layer is too large or the counts do not fit the layers.
  void check(const std::vector<Layer>& layers) const {
    std::vector<std::int64_t> sizes;
    for (const Layer& layer : layers) {
      if (layer.size > error_bounds::most_layer_elements) {
        throw std::invalid_argument("layer " + std::to_string(sizes.size()) + " has " +
                                    std::to_string(layer.size) + " elements, more than the " +
                                    std::to_string(error_bounds::most_layer_elements) +
                                    " for which exactness is proven");
      }
      sizes.push_back(layer.size);
    }
    if (ranking != Ranking::per_layer) {
      sizes = {std::accumulate(sizes.begin(), sizes.end(), std::int64_t{0})};
    }
    if (counts.size() != sizes.size()) {
      throw std::invalid_argument("a selection has " + std::to_string(counts.size()) +
                                  " counts where " + std::to_string(sizes.size()) + " are needed");
    }
    for (std::size_t i = 0; i < sizes.size(); ++i) {
      if (counts[i] < 0 || counts[i] > sizes[i]) {
        throw std::invalid_argument("a selection's count is " + std::to_string(counts[i]) +
                                    ", not from 0 to " + std::to_string(sizes[i]));
      }
    }
  }
};

}  // namespace lampfast
