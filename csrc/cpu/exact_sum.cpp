// The exact sum of squares in a layer, for the comparisons that doubles cannot decide.
#include <mutex>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/superaccumulator.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"

namespace lampfast::cpu {

BigUint HostBackend::exact_sum_above(std::size_t id, std::uint64_t above) {
  const Layer& layer = layers_[id];
  BigUint sum;
  std::mutex mutex;
  for_each_chunk(whole(layer), pool_, [&](const Chunk& chunk, int) {
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      using Key = typename Format::Storage;
      const auto* data = reinterpret_cast<const Key*>(layer.data);
      Superaccumulator<Format> partial;
      StridedWalk<1>(layer.shape, {&layer.strides}, Order::memory)
          .runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
            for (std::int64_t j = 0; j < length; ++j) {
              const Key key = Format::key(data[offsets[0] + j]);
              if (key > above) partial.add_square(key);
            }
          });
      const BigUint total = partial.total();
      const std::lock_guard<std::mutex> lock(mutex);
      sum += total;
    });
  });
  return sum;
}

}  // namespace lampfast::cpu
