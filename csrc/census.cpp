#include "census.h"

#include <algorithm>
#include <mutex>

#include "chunks.h"
#include "cpu/kernels.h"
#include "magnitude.h"
#include "tiny.h"
#include "walk.h"

namespace lampfast {

void census(const std::vector<Layer>& layers, const Chosen& chosen, std::vector<Cut>& cuts,
            cpu::Team& team) {
  for (const std::size_t i : chosen) cuts[i] = {not_finite_key(layers[i].dtype), 0, 0, 0.0};
  std::mutex mutex;
  for_each_chunk(whole(layers, chosen), team, [&](const Chunk& chunk, int) {
    const Layer& layer = layers[chunk.layer];
    const cpu::Kernels& kernels = cpu::kernels(layer.dtype);
    std::int64_t zeros = 0;
    std::uint64_t smallest = not_finite_key(layer.dtype);
    with_format(layer.dtype, [&](auto format) {
      using Key = typename decltype(format)::Storage;
      for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), chunk,
                       [&](const Key* elements, std::int64_t length) {
                         constexpr std::int64_t piece = tiny ? 8 : 4096;  // stays in the cache
                         for (std::int64_t begin = 0; begin < length; begin += piece) {
                           const std::int64_t count = std::min(piece, length - begin);
                           const Key* here = elements + begin;
                           if (kernels.largest(here, count) >= decltype(format)::not_finite) {
                             throw NotFinite();
                           }
                           zeros += kernels.count_equal(here, count, 0);
                           smallest = std::min(smallest, kernels.smallest(here, count));
                         }
                       });
    });
    const std::lock_guard<std::mutex> lock(mutex);
    Cut& cut = cuts[chunk.layer];
    cut.key = std::min(cut.key, smallest);
    cut.pruned += zeros;
  });
  for (const std::size_t i : chosen) {
    cuts[i].threshold = magnitude_of(layers[i].dtype, cuts[i].key);
  }
}

std::optional<Element> first_not_finite(const std::vector<Layer>& layers, const Chosen& chosen,
                                        cpu::Team& team) {
  std::optional<Element> first;
  std::mutex mutex;
  for_each_chunk(whole(layers, chosen), team, [&](const Chunk& chunk, int) {
    const Layer& layer = layers[chunk.layer];
    const Strides indices = row_major_strides(layer.shape);
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
      const Walk<2, 1> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
      walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
        for (std::int64_t i = 0; i < length; ++i) {
          if (Format::key(data[offsets[0] + i]) < Format::not_finite) continue;
          const Element found{chunk.layer, offsets[1] + i * walk.step()[1]};
          const std::lock_guard<std::mutex> lock(mutex);
          if (!first || found < *first) first = found;
        }
      });
    });
  });
  return first;
}

}  // namespace lampfast
