// Where a partition writes masks while it reads: every element outside its interval is decided.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

// Whether an element's position (strided_walk.h) is its offset in the layer's memory and in its
// target's: both are dense, and in the same order.
inline bool same_memory_order(const Layer& layer, const Layer& target) {
  if (is_row_major(layer.shape, layer.strides) && is_row_major(target.shape, target.strides)) {
    return true;  // spares small layers the walk
  }
  return StridedWalk<2>(layer.shape, {&layer.strides, &target.strides}, Order::memory).is_one_run();
}

class MaskSink {
 public:
  // No masks are wanted.
  MaskSink() = default;
  // One mask per layer; they must outlive the sink.
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
