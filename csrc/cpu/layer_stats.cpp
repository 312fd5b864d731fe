// Statistics of layers in host memory, and the first element that is not finite.
#include <algorithm>
#include <mutex>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

// Throws NotFinite.
template <class Format>
LayerStats stats_of(const Layer& layer, const Chunk& chunk) {
  using Key = typename Format::Storage;
  const Kernels& kernels = kernels_for(layer.dtype);
  LayerStats stats;
  const auto add = [&](const Key* elements, std::int64_t length) {
    const KeyStats found = kernels.stats(elements, length);
    if (found.largest >= Format::not_finite) throw NotFinite();
    stats.merge({found.zeros, found.smallest});
  };
  for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), chunk, add);
  return stats;
}

// The first element in row-major order that is not finite, if there is one.
template <class Format>
std::optional<std::int64_t> first_not_finite_of(const Layer& layer, const Chunk& chunk) {
  const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2, 1> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  std::optional<std::int64_t> first;
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
    for (std::int64_t i = 0; i < length; ++i) {
      if (Format::key(data[offsets[0] + i]) < Format::not_finite) continue;
      const std::int64_t index = offsets[1] + i * walk.step()[1];
      first = std::min(first.value_or(index), index);
    }
  });
  return first;
}

}  // namespace

std::vector<LayerStats> HostBackend::stats(const LayerIds& ids) {
  std::vector<LayerStats> all(ids.size());
  std::mutex mutex;
  for_each_chunk(whole(layers_, ids), pool_, [&](const Chunk& chunk, int) {
    const Layer& layer = layers_[chunk.layer];
    const LayerStats found = with_format(
        layer.dtype, [&](auto format) { return stats_of<decltype(format)>(layer, chunk); });
    const std::lock_guard<std::mutex> lock(mutex);
    all[chunk.position].merge(found);
  });
  return all;
}

std::optional<ElementIndex> HostBackend::first_not_finite(const LayerIds& ids) {
  std::optional<ElementIndex> first;
  std::mutex mutex;
  for_each_chunk(whole(layers_, ids), pool_, [&](const Chunk& chunk, int) {
    const Layer& layer = layers_[chunk.layer];
    const std::optional<std::int64_t> index = with_format(layer.dtype, [&](auto format) {
      return first_not_finite_of<decltype(format)>(layer, chunk);
    });
    if (!index) return;
    const ElementIndex found{chunk.layer, *index};
    const std::lock_guard<std::mutex> lock(mutex);
    if (!first || found < *first) first = found;
  });
  return first;
}

}  // namespace lampfast::cpu
