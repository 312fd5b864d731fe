// How the layers of a job lie in a GPU's memory: the part of their Works that is the same in all
// launches.
#pragma once

#include <cstdint>
#include <vector>

#include "backend.h"
#include "core/key_format.h"
#include "core/mask_sink.h"
#include "core/strided_walk.h"
#include "cuda/work.h"
#include "cuda/workspace.h"

namespace lampfast::cuda {

struct Layout {
  std::vector<Work> works;      // by layer id; empty for layers on other devices
  std::vector<VisitAxis> axes;  // that they refer to, by their addresses on the device

  Layout(const Job& job, int device, const VisitAxis* device_axes) : works(job.layers.size()) {
    std::int64_t spans = 0;
    for (std::size_t i = 0; i < works.size(); ++i) {
      const Layer& layer = job.layers[i];
      if (layer.device != device) continue;
      const Layer& target = job.targets.empty() ? layer : job.targets[i];
      Work& work = works[i];
      work.data = layer.data;
      work.target = target.data;
      work.size = layer.size;
      work.first_span = spans;
      work.scale = 1.0;
      work.own_target = target.data == layer.data && target.strides == layer.strides;
      work.target_size = static_cast<int>(item_size(target.dtype));
      const bool is_simple =
          is_row_major(layer.shape, layer.strides) && is_row_major(target.shape, target.strides);
      work.dense = is_simple || same_memory_order(layer, target);
      work.aligned = work.dense && is_aligned(work.data, vector_bytes) &&
                     is_aligned(work.target, work.own_target ? vector_bytes : 4);
      work.is_plain = work.aligned;
      spans += spans_of(layer);
      if (is_simple) continue;  // the orders are the same and have no axes
      work.by_memory = visit_order(layer, target, Order::memory, device_axes);
      work.by_index = visit_order(layer, target, Order::row_major, device_axes);
    }
  }

 private:
  static bool is_aligned(const std::byte* data, std::uintptr_t bytes) {
    return reinterpret_cast<std::uintptr_t>(data) % bytes == 0;
  }

  VisitOrder visit_order(const Layer& layer, const Layer& target, Order order,
                         const VisitAxis* device_axes) {
    const Strides indices = row_major_strides(layer.shape);
    const StridedWalk<3, 0> walk(layer.shape, {&layer.strides, &target.strides, &indices}, order);
    const auto found = walk.axes();
    const auto& run = found.back().stride;
    if (found.size() == 1 && run[0] == 1 && run[1] == 1 && run[2] == 1) return {nullptr, 0};
    const VisitAxis* const first = device_axes == nullptr ? nullptr : device_axes + axes.size();
    const VisitOrder visit{first, static_cast<int>(found.size())};
    for (const auto& axis : found) {
      axes.push_back({axis.extent, axis.stride[0], axis.stride[1], axis.stride[2]});
    }
    return visit;
  }
};

}  // namespace lampfast::cuda
