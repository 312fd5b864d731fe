// Visits the elements of one or several tensors of the same shape in runs, which are contiguous in
// the first `Dense` tensors and evenly spaced in the others.
//
// The position of an element is its number in visiting order. Order::memory follows the memory of
// the first tensor, so that a channels_last or transposed layer is one run. For row-major indices,
// add a "tensor" with row-major strides: its offsets are the indices.
//
// A walk allocates nothing and cannot fail, so that a commit may use it.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <vector>

namespace lampfast {

using Strides = std::vector<std::int64_t>;

inline Strides row_major_strides(const std::vector<std::int64_t>& shape) {
  Strides strides(shape.size());
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    strides[axis] = stride;
    stride *= shape[axis];
  }
  return strides;
}

inline bool is_row_major(const std::vector<std::int64_t>& shape, const Strides& strides) {
  std::int64_t stride = 1;
  for (std::size_t axis = shape.size(); axis-- > 0;) {
    if (shape[axis] != 1 && strides[axis] != stride) return false;
    stride *= shape[axis];
  }
  return true;
}

enum class Order { memory, row_major };

template <std::size_t Tensors, std::size_t Dense = Tensors>
class StridedWalk {
 public:
  using Offsets = std::array<std::int64_t, Tensors>;

  StridedWalk(const std::vector<std::int64_t>& shape,
              const std::array<const Strides*, Tensors>& strides, Order order) noexcept {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return;  // no elements
    std::array<std::size_t, most_axes> visited;
    std::size_t count = 0;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] == 1) continue;
      std::size_t at = count++;
      if (order == Order::memory) {  // sorted by insertion: there are few axes
        const std::int64_t own = rank((*strides[0])[i]);
        for (; at > 0 && rank((*strides[0])[visited[at - 1]]) < own; --at) {
          visited[at] = visited[at - 1];
        }
      }
      visited[at] = i;
    }
    for (std::size_t v = 0; v < count; ++v) {
      Axis axis{shape[visited[v]], {}};
      for (std::size_t t = 0; t < Tensors; ++t) axis.stride[t] = (*strides[t])[visited[v]];
      append(axis);
    }
    if (axis_count_ > 0 && is_run(axes_[axis_count_ - 1])) run_ = axes_[--axis_count_];
  }

  // Whether one run covers all elements.
  bool is_one_run() const { return axis_count_ == 0; }

  // The distance from one element of a run to the next, in every tensor; 1 in the dense ones.
  const Offsets& step() const { return run_.stride; }

  // Calls body(position, offsets, length) for each run within the positions [begin, end).
  template <class Body>
  void runs(std::int64_t begin, std::int64_t end, Body&& body) const {
    if (begin >= end) return;
    if (is_one_run()) {
      Offsets offsets;
      for (std::size_t t = 0; t < Tensors; ++t) offsets[t] = begin * run_.stride[t];
      body(begin, offsets, end - begin);
      return;
    }
    std::int64_t within = begin % run_.extent;
    Index index = unravel(begin / run_.extent);
    Offsets row{};
    for (std::size_t a = 0; a < axis_count_; ++a) {
      for (std::size_t t = 0; t < Tensors; ++t) row[t] += index[a] * axes_[a].stride[t];
    }
    for (std::int64_t position = begin; position < end;) {
      const std::int64_t length = std::min(run_.extent - within, end - position);
      Offsets offsets = row;
      for (std::size_t t = 0; t < Tensors; ++t) offsets[t] += within * run_.stride[t];
      body(position, offsets, length);
      position += length;
      within = 0;
      if (position < end) advance(index, row);
    }
  }

  struct Axis {
    std::int64_t extent;
    std::array<std::int64_t, Tensors> stride;
  };

  // The axes of the visiting order, outermost first; the last one is the run.
  std::vector<Axis> axes() const {
    std::vector<Axis> all(axes_.begin(), axes_.begin() + axis_count_);
    all.push_back(run_);
    return all;
  }

 private:
  // The number of elements fits 63 bits (check_layers.h), and each axis that is visited doubles it.
  static constexpr std::size_t most_axes = 62;
  using Index = std::array<std::int64_t, most_axes>;

  static Offsets unit() {
    Offsets ones;
    ones.fill(1);
    return ones;
  }

  // Expanded axes (stride 0) go outermost: further in they would break every run.
  static std::int64_t rank(std::int64_t stride) {
    return stride == 0 ? std::numeric_limits<std::int64_t>::max() : std::abs(stride);
  }

  static bool is_run(const Axis& axis) {
    return std::all_of(axis.stride.begin(), axis.stride.begin() + Dense,
                       [](std::int64_t stride) { return stride == 1; });
  }

  void append(const Axis& axis) {
    const auto continues = [&](const Axis& outer) {
      for (std::size_t t = 0; t < Tensors; ++t) {
        if (outer.stride[t] != axis.stride[t] * axis.extent) return false;
      }
      return true;
    };
    if (axis_count_ > 0 && continues(axes_[axis_count_ - 1])) {
      axes_[axis_count_ - 1] = Axis{axes_[axis_count_ - 1].extent * axis.extent, axis.stride};
    } else {
      axes_[axis_count_++] = axis;
    }
  }

  Index unravel(std::int64_t row) const {
    Index index;
    for (std::size_t a = axis_count_; a-- > 0;) {
      index[a] = row % axes_[a].extent;
      row /= axes_[a].extent;
    }
    return index;
  }

  void advance(Index& index, Offsets& row) const {
    for (std::size_t a = axis_count_; a-- > 0;) {
      for (std::size_t t = 0; t < Tensors; ++t) row[t] += axes_[a].stride[t];
      if (++index[a] < axes_[a].extent) return;
      index[a] = 0;
      for (std::size_t t = 0; t < Tensors; ++t) row[t] -= axes_[a].stride[t] * axes_[a].extent;
    }
  }

  std::array<Axis, most_axes> axes_;  // outermost first, without the run
  std::size_t axis_count_ = 0;
  Axis run_{1, unit()};
};

// Whether positions in the memory's order are row-major indices: the memory may have gaps, but its
// strides fall from the first axis to the last.
inline bool positions_are_indices(const std::vector<std::int64_t>& shape, const Strides& strides) {
  const Strides indices = row_major_strides(shape);
  const auto axes = StridedWalk<2, 0>(shape, {&strides, &indices}, Order::memory).axes();
  std::int64_t stride = 1;
  for (std::size_t a = axes.size(); a-- > 0;) {
    if (axes[a].extent > 1 && axes[a].stride[1] != stride) return false;
    stride *= axes[a].extent;
  }
  return true;
}

}  // namespace lampfast
