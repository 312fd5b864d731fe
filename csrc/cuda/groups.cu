// n:m patterns on a GPU: of each group, the elements that are largest stay. One thread ranks one
// group, and the kernels get a box of groups by value, as an argument.
#include <cstdint>
#include <stdexcept>

#include "core/group_pattern.h"
#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

// A box of groups, in a launch. Tensors have at most 64 axes.
struct DeviceBox {
  static constexpr int most_axes = 64;
  struct Axis {
    std::int64_t extent;
    std::int64_t source;
    std::int64_t target;
  };

  const std::byte* source;  // its first element
  std::byte* target;
  std::int64_t source_step;  // from one element of a group to the next
  std::int64_t target_step;
  std::int64_t count;
  int size;
  int pruned;
  int axis_count;
  Axis axes[most_axes];  // outermost first
};

DeviceBox device_box(const GroupBox& box, const Layer& layer, const Layer& target) {
  DeviceBox found{};
  found.source = layer.data + box.source.begin * item_size(layer.dtype);
  found.target = target.data + box.target.begin * item_size(target.dtype);
  found.source_step = box.source.step;
  found.target_step = box.target.step;
  found.count = box.count;
  found.size = box.size;
  found.pruned = box.size - box.kept;
  const StridedWalk<2, 0> walk(box.shape, {&box.source.strides, &box.target.strides},
                               Order::memory);
  for (const auto& axis : walk.axes()) {
    if (found.axis_count == DeviceBox::most_axes) {
      throw std::invalid_argument("a layer has more axes than a tensor can");
    }
    found.axes[found.axis_count++] = {axis.extent, axis.stride[0], axis.stride[1]};
  }
  return found;
}

// Zeroes the pruned elements of the thread's group, or writes their mask.
template <class Format, class Target, bool writes_mask>
__global__ __launch_bounds__(block_threads) void keep_in_groups(const DeviceBox box) {
  using Key = typename Format::Storage;
  std::int64_t group = std::int64_t{blockIdx.x} * block_threads + threadIdx.x;
  if (group >= box.count) return;
  const Key* source = reinterpret_cast<const Key*>(box.source);
  Target* target = reinterpret_cast<Target*>(box.target);
  for (int a = box.axis_count; a-- > 0;) {
    const std::int64_t outer = group / box.axes[a].extent;
    const std::int64_t index = group - outer * box.axes[a].extent;
    source += index * box.axes[a].source;
    target += index * box.axes[a].target;
    group = outer;
  }
  // Which elements are kept: they may be their own targets, so all are ranked before any is zeroed.
  std::uint64_t kept = 0;
  for (int i = 0; i < box.size; ++i) {
    const Key own = Format::key(source[i * box.source_step]);
    int smaller = 0;
    for (int j = 0; j < box.size; ++j) {
      const Key other = Format::key(source[j * box.source_step]);
      smaller += other < own || (other == own && j < i);
    }
    if (smaller >= box.pruned) kept |= std::uint64_t{1} << i;
  }
  for (int i = 0; i < box.size; ++i) {
    const bool is_kept = (kept >> i & 1) != 0;
    Target& element = target[i * box.target_step];
    if constexpr (writes_mask) {
      element = is_kept ? 1 : 0;
    } else if (!is_kept) {
      element = 0;
    }
  }
}

template <class Format, class Target, bool writes_mask>
void launch_box(const DeviceBox& box, cudaStream_t stream) {
  const std::int64_t blocks = (box.count + block_threads - 1) / block_threads;
  launch("keep_in_groups", keep_in_groups<Format, Target, writes_mask>, blocks, stream, box);
}

}  // namespace

void mask_groups(const GroupBox& box, const Layer& layer, const Layer& mask, cudaStream_t stream) {
  with_format(layer.dtype, [&](auto format) {
    launch_box<decltype(format), std::uint8_t, true>(device_box(box, layer, mask), stream);
  });
}

void zero_groups(const GroupBox& box, const Layer& layer, const Layer& target,
                 cudaStream_t stream) {
  const DeviceBox found = device_box(box, layer, target);
  with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    with_key(item_size(target.dtype),
             [&](auto key) { launch_box<Format, decltype(key), false>(found, stream); });
  });
}

void load_zero_groups(const Layer& layer, const Layer& target) {
  with_format(layer.dtype, [&](auto format) {
    with_key(item_size(target.dtype), [&](auto key) {
      load("keep_in_groups", keep_in_groups<decltype(format), decltype(key), false>);
    });
  });
}

}  // namespace lampfast::cuda
