// Visits the elements of one or several tensors of the same shape in runs, which are contiguous in
// the first `Dense` tensors and evenly spaced in the others.
//
// The position of an element is its number in visiting order. Order::memory follows the memory of
// the first tensor, so that a channels_last or transposed layer is one run. For row-major indices,
// add a "tensor" with row-major strides: its offsets are the indices.
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
              const std::array<const Strides*, Tensors>& strides, Order order) {
    std::vector<std::size_t> visited;
    for (std::size_t i = 0; i < shape.size(); ++i) {
      if (shape[i] != 1) visited.push_back(i);
    }
    if (order == Order::memory) {
      std::stable_sort(visited.begin(), visited.end(), [&](std::size_t a, std::size_t b) {
        return rank((*strides[0])[a]) > rank((*strides[0])[b]);
      });
    }
    for (const std::size_t i : visited) {
      Axis axis{shape[i], {}};
      for (std::size_t t = 0; t < Tensors; ++t) axis.stride[t] = (*strides[t])[i];
      append(axis);
    }
    if (!axes_.empty() && is_run(axes_.back())) {
      run_ = axes_.back();
      axes_.pop_back();
    }
  }

  // Whether one run covers all elements.
  bool is_one_run() const { return axes_.empty(); }

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
    std::vector<std::int64_t> index = unravel(begin / run_.extent);
    Offsets row{};
    for (std::size_t a = 0; a < axes_.size(); ++a) {
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
    std::vector<Axis> all = axes_;
    all.push_back(run_);
    return all;
  }

 private:
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
    if (!axes_.empty() && continues(axes_.back())) {
      axes_.back() = Axis{axes_.back().extent * axis.extent, axis.stride};
    } else {
      axes_.push_back(axis);
    }
  }

  std::vector<std::int64_t> unravel(std::int64_t row) const {
    std::vector<std::int64_t> index(axes_.size());
    for (std::size_t a = axes_.size(); a-- > 0;) {
      index[a] = row % axes_[a].extent;
      row /= axes_[a].extent;
    }
    return index;
  }

  void advance(std::vector<std::int64_t>& index, Offsets& row) const {
    for (std::size_t a = axes_.size(); a-- > 0;) {
      for (std::size_t t = 0; t < Tensors; ++t) row[t] += axes_[a].stride[t];
      if (++index[a] < axes_[a].extent) return;
      index[a] = 0;
      for (std::size_t t = 0; t < Tensors; ++t) row[t] -= axes_[a].stride[t] * axes_[a].extent;
    }
  }

  std::vector<Axis> axes_;  // outermost first, without the run
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
