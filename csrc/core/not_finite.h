// The error for an element that is NaN or infinite: such values cannot be ordered.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <utility>

namespace lampfast {

struct ElementIndex {
  std::size_t layer;
  std::int64_t index;    // row-major
  std::size_t rank = 0;  // the first that has it, if the layer is sharded

  bool operator<(const ElementIndex& other) const {
    return layer < other.layer || (layer == other.layer && index < other.index);
  }
};

// A stage that meets such a value in a sum or a maximum does not know where it is. prune.cpp then
// looks for the first one, and throws again with its index.
struct NotFinite : std::invalid_argument {
  explicit NotFinite(std::optional<ElementIndex> where = std::nullopt)
      : std::invalid_argument("a layer has an element that is NaN or infinite"),
        element(std::move(where)) {}

  std::optional<ElementIndex> element;
};

}  // namespace lampfast
