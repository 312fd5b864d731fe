// Packed masks of layers in host memory: sets the bits of the weights that are not zero, and zeroes
// the weights whose bits are clear.
#include <algorithm>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

// Chunks are of whole words, so that no two threads share one.
constexpr std::int64_t packed_chunk_size = test_sizes ? word_weights : chunk_size;
static_assert(packed_chunk_size % word_weights == 0);

// Calls body(layer, chunk, its first word) for chunks that make up the layers.
template <class Body>
void for_each_packed_chunk(const std::vector<Layer>& layers, const LayerIds& ids,
                           const PackedMasks& masks, ThreadPool& pool, Body&& body) {
  const auto visit = [&](const Chunk& chunk, int) {
    body(layers[chunk.layer], chunk, masks[chunk.layer] + chunk.begin / word_weights);
  };
  for_each_chunk(whole(layers, ids), pool, visit, packed_chunk_size);
}

// Calls dense(elements, count) if the chunk is contiguous, else single(element, word, bit) for each
// of its elements, with the index of its word and of its bit.
template <class Element, class Dense, class Single>
void visit(const Layer& layer, const Chunk& chunk, Dense&& dense, Single&& single) {
  auto* data = reinterpret_cast<Element*>(layer.data);
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  if (walk.is_one_run() && step == 1) return dense(data + chunk.begin, chunk.end - chunk.begin);
  walk.runs(chunk.begin, chunk.end,
            [&](std::int64_t position, const auto& offsets, std::int64_t length) {
              const std::int64_t first = position - chunk.begin;
              for (std::int64_t i = 0; i < length; ++i) {
                single(data[offsets[0] + i * step], (first + i) / word_weights,
                       static_cast<int>((first + i) % word_weights));
              }
            });
}

}  // namespace

void HostBackend::pack(const LayerIds& ids, const PackedMasks& masks) {
  for_each_packed_chunk(
      layers_, ids, masks, pool_, [](const Layer& layer, const Chunk& chunk, MaskWord* words) {
        const Kernels& kernels = kernels_for(layer.dtype);
        with_format(layer.dtype, [&](auto format) {
          using Format = decltype(format);
          using Element = const typename Format::Storage;
          visit<Element>(
              layer, chunk,
              [&](Element* elements, std::int64_t count) { kernels.pack(elements, count, words); },
              [&](Element& element, std::int64_t word, int bit) {
                if (bit == 0) words[word] = 0;
                words[word] |= MaskWord{Format::key(element) != 0} << bit;
              });
        });
      });
}

void HostBackend::apply_packed_masks(const LayerIds& ids, const PackedMasks& masks) {
  for_each_packed_chunk(layers_, ids, masks, pool_,
                        [](const Layer& layer, const Chunk& chunk, const MaskWord* words) {
                          const Kernels& kernels = kernels_for(layer.dtype);
                          with_format(layer.dtype, [&](auto format) {
                            using Element = typename decltype(format)::Storage;
                            visit<Element>(
                                layer, chunk,
                                [&](Element* elements, std::int64_t count) {
                                  kernels.apply_packed_mask(elements, count, words);
                                },
                                [&](Element& element, std::int64_t word, int bit) {
                                  if ((words[word] >> bit & 1) == 0) element = 0;
                                });
                          });
                        });
}

}  // namespace lampfast::cpu
