// Brings the drawn blocks of a group together, then counts them by the kernel that partitions.
#include "cpu/sampling/probe.h"

#include <algorithm>
#include <array>

#include "core/key_format.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/classify.h"

namespace lampfast::cpu {
namespace {

template <class Key>
void add(Dtype dtype, const Key* keys, std::int64_t count, std::uint64_t key, double scale,
         std::size_t group, Split& split) {
  classify(dtype, keys, count, {key, key}, scale, nullptr,
           [&](const Classified& block, const Key*) {
             split.drawn[group] += static_cast<double>(block.below + block.above);
             split.below[group] += static_cast<double>(block.below);
             split.sum_from[group] += block.above_sum;
           });
}

}  // namespace

Split probe_all(const Layer& layer, const Chunk& chunk, std::uint64_t key, double scale) {
  return with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    Split split;
    for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), chunk,
                     [&](const Key* keys, std::int64_t length) {
                       add(layer.dtype, keys, length, key, scale, 0, split);
                     });
    return split;
  });
}

Split probe(const Layer& layer, const Blocks& blocks, std::int64_t first, std::int64_t last,
            std::uint64_t key, double scale) {
  if (blocks.is_whole()) {
    return probe_all(layer, {0, 0, blocks.begin(first), blocks.end(blocks.begin(last - 1))}, key,
                     scale);
  }
  return with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    // The blocks of a group are brought together, since short calls cost more.
    constexpr std::int64_t room = test_sizes ? 4 : 128;
    std::array<std::array<Key, room>, groups> gathered;
    std::array<std::int64_t, groups> filled{};
    Split split;
    const auto flush = [&](std::size_t group) {
      add(layer.dtype, gathered[group].data(), filled[group], key, scale, group, split);
      filled[group] = 0;
    };
    for_each_drawn(layer, reinterpret_cast<const Key*>(layer.data), blocks, first, last,
                   [&](std::size_t group, const Key* data, std::int64_t step, std::int64_t length) {
                     while (length > 0) {
                       const std::int64_t taken = std::min(length, room - filled[group]);
                       Key* to = gathered[group].data() + filled[group];
                       if (step == 1) {
                         std::copy_n(data, taken, to);
                       } else {
                         for (std::int64_t i = 0; i < taken; ++i) to[i] = data[i * step];
                       }
                       data += taken * step;
                       length -= taken;
                       filled[group] += taken;
                       if (filled[group] == room) flush(group);
                     }
                   });
    for (std::size_t group = 0; group < groups; ++group) flush(group);
    return split;
  });
}

}  // namespace lampfast::cpu
