// The exact sum of squares in a layer, for the comparisons that doubles cannot decide.
#include <mutex>

#include "core/key_format.h"
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
      Superaccumulator<Format> partial;
      for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
        for (std::int64_t i = 0; i < length; ++i) {
          const Key key = Format::key(elements[i]);
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
