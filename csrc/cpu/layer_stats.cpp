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
  for_each_stretch<Key>(layer, chunk, add);
  return stats;
}

// The first element in row-major order that is not finite, if there is one.
template <class Format>
std::optional<std::int64_t> first_not_finite_of(const Layer& layer, const Chunk& chunk) {
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  const auto& step = walk.step();
  std::optional<std::int64_t> first;
  typename Format::Storage loaded[most_gathered];
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    const ElementRun run{at[0], step[0], at[1], step[1]};
    for (std::int64_t begin = 0; begin < length; begin += most_gathered) {
      const std::int64_t count = std::min(most_gathered, length - begin);
      const auto* elements = load(layer, run.from(begin), count, loaded);
      for (std::int64_t i = 0; i < count; ++i) {
        if (Format::key(elements[i]) < Format::not_finite) continue;
        const std::int64_t index = at[1] + (begin + i) * step[1];
        first = std::min(first.value_or(index), index);
      }
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
