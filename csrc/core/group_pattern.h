// n:m patterns: along one axis of a layer, each group of m consecutive elements keeps n of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

struct GroupPattern {
  static constexpr int most_size = 64;

  int kept;  // n
  int size;  // m
  int axis;
};

// Groups of equal size, evenly laid out: those of a layer that are whole, or what is left at the
// end of the axis where its extent is no multiple of the size. A smaller group keeps in proportion,
// rounded up.
struct GroupBox {
  std::size_t layer;
  int size;
  int kept;
  std::int64_t count;               // of groups
  std::vector<std::int64_t> shape;  // of the layer, in groups; without the lanes
  std::int64_t lanes = 1;           // groups that lie side by side
  // How the groups, and the elements of a group, lie in the layer and in its target.
  struct Place {
    std::int64_t begin;
    Strides strides;
    std::int64_t step;
  };
  Place source;
  Place target;
};

inline void check_patterns(const std::vector<Layer>& layers,
                           const std::vector<GroupPattern>& patterns) {
  if (patterns.size() != layers.size()) {
    throw std::invalid_argument(std::to_string(layers.size()) +
                                " layers need as many patterns, not " +
                                std::to_string(patterns.size()));
  }
  for (std::size_t i = 0; i < layers.size(); ++i) {
    const GroupPattern& pattern = patterns[i];
    const bool has_axis =
        pattern.axis >= 0 && static_cast<std::size_t>(pattern.axis) < layers[i].shape.size();
    if (pattern.size < 1 || pattern.size > GroupPattern::most_size || pattern.kept < 0 ||
        pattern.kept > pattern.size || !has_axis) {
      throw std::invalid_argument(
          "pattern " + std::to_string(i) + " keeps " + std::to_string(pattern.kept) + " of " +
          std::to_string(pattern.size) + " along axis " + std::to_string(pattern.axis) + " of " +
          std::to_string(layers[i].shape.size()));
    }
  }
}

// How many of the `size` elements of a group stay: in a smaller group as many in proportion.
inline int kept_of(int size, const GroupPattern& pattern) {
  return (pattern.kept * size + pattern.size - 1) / pattern.size;
}

// The boxes that a layer consists of: none, one or two.
inline std::vector<GroupBox> boxes_of(std::size_t id, const Layer& layer, const Layer& target,
                                      const GroupPattern& pattern) {
  std::vector<GroupBox> boxes;
  if (layer.size == 0) return boxes;
  const auto axis = static_cast<std::size_t>(pattern.axis);
  const std::int64_t extent = layer.shape[axis];
  const auto add = [&](std::int64_t first, int size, std::int64_t groups) {
    if (size == 0 || groups == 0) return;
    GroupBox box;
    box.layer = id;
    box.size = size;
    box.kept = kept_of(size, pattern);
    box.count = layer.size / extent * groups;
    box.shape = layer.shape;
    box.shape[axis] = groups;
    const auto place = [&](const Layer& tensor) {
      const std::int64_t step = tensor.strides[axis];
      GroupBox::Place found{first * step, tensor.strides, step};
      found.strides[axis] = step * size;
      return found;
    };
    box.source = place(layer);
    box.target = place(target);
    boxes.push_back(box);
  };
  const std::int64_t whole = extent / pattern.size;
  add(0, pattern.size, whole);
  add(whole * pattern.size, static_cast<int>(extent % pattern.size), 1);
  return boxes;
}

// How many elements of a layer its pattern prunes. Of the layer only the shape matters.
inline std::int64_t pruned_by(const Layer& layer, const GroupPattern& pattern) {
  if (layer.size == 0) return 0;
  const std::int64_t extent = layer.shape[static_cast<std::size_t>(pattern.axis)];
  const auto rest = static_cast<int>(extent % pattern.size);
  const std::int64_t of_line =
      extent / pattern.size * (pattern.size - pattern.kept) + rest - kept_of(rest, pattern);
  return layer.size / extent * of_line;
}

}  // namespace lampfast
