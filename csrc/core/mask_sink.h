// Where a partition writes masks on its way: it has decided every element outside of its interval.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

// Whether the positions of a layer's elements (strided_walk.h) are places in its memory and in its
// target's.
inline bool same_memory_order(const Layer& layer, const Layer& target) {
  return StridedWalk<2>(layer.shape, {&layer.strides, &target.strides}, Order::memory).is_one_run();
}

class MaskSink {
 public:
  // Takes nothing: no masks are wanted.
  MaskSink() = default;
  // One mask for each layer; they outlive the sink.
  explicit MaskSink(const std::vector<Layer>& masks) : masks_(&masks) {}

  bool wants_masks() const { return masks_ != nullptr; }

  // Whether a mask can be written while its layer is read: it must lie in memory as the layer does.
  bool takes(std::size_t id, const Layer& layer) const {
    return masks_ != nullptr && same_memory_order(layer, (*masks_)[id]);
  }

  const Layer& mask(std::size_t id) const { return (*masks_)[id]; }
  std::uint8_t* bytes(std::size_t id) const {
    return reinterpret_cast<std::uint8_t*>((*masks_)[id].data);
  }

 private:
  const std::vector<Layer>* masks_ = nullptr;
};

}  // namespace lampfast
