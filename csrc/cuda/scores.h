// LAMP scores on a GPU: layers are sorted, small ones together.
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
  std::int64_t spans = 0;  // of all layers, as the kernels divide them
  int index_bits = 0;      // that the row-major indices in a layer need
};
std::vector<Batch> batches(const std::vector<Layer>& layers, LayerIds ids);

// Device memory that a batch needs.
std::int64_t score_bytes(const Batch& batch);

// Writes the scores of a batch to the targets of its works, whose Work::out and Work::first_span
// count from 0 within the batch. Sets `not_finite` if an element is not finite.
void score_batch(const Batch& batch, const Work* works, std::byte* memory,
                 std::uint32_t* not_finite, cudaStream_t stream);

}  // namespace lampfast::cuda
