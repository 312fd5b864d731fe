// Scores on a GPU: layers are sorted, small ones together.
#pragma once

#include <cstdint>
#include <vector>

#include "core/layer.h"
#include "cuda/runtime.h"
#include "cuda/work.h"

namespace lampfast::cuda {

// Layers of one dtype that are sorted together.
struct Batch {
  Dtype dtype;
  LayerIds layers;
  std::int64_t size = 0;   // elements in all
  std::int64_t spans = 0;  // of all layers, in the kernels' counting

  // Whether four bytes are enough for what is sorted, and for its places: a key by itself, of no
  // more elements than they can count.
  bool is_narrow() const;
};
std::vector<Batch> batches(const std::vector<Layer>& layers, const LayerIds& ids);

// Device memory that a batch needs.
std::int64_t score_bytes(const Batch& batch);

// Writes the scores of a batch to the targets of its works, which count its elements from
// Work::out on and its spans from 0 on. Sets not_finite where an element is not.
void score_batch(const Batch& batch, const Work* works, std::byte* memory,
                 std::uint32_t* not_finite, cudaStream_t stream);

}  // namespace lampfast::cuda
