// Counts the ties of a piece of a layer by where they lie in the layer.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

// Adds the ties of some evenly spaced elements to the counts of their parts. `index` is that of the
// first one, and `step` leads from one to the next.
template <class Format>
void add_ties(const typename Format::Storage* run, std::int64_t length, std::int64_t stride,
              std::int64_t index, std::int64_t step, const TieRequest& request,
              std::vector<std::int64_t>& counts) {
  const auto key = static_cast<typename Format::Storage>(request.key);
  const auto parts = static_cast<std::int64_t>(request.parts);
  for (std::int64_t i = 0; i < length; ++i) {
    if (Format::key(run[i * stride]) != key) continue;
    const std::int64_t part = (index + i * step - request.begin) >> request.bits;
    if (part >= 0 && part < parts) ++counts[static_cast<std::size_t>(part)];
  }
}

}  // namespace

std::vector<std::int64_t> HostBackend::count_ties(std::size_t id, const TieRequest& request) {
  constexpr std::int64_t piece = test_sizes ? 5 : 64;  // skipped as a whole if it has no tie
  const Layer& layer = layers_[id];
  const Kernels& kernels = kernels_for(layer.dtype);
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, request.index_steps}, Order::memory);
  const std::int64_t stride = walk.step()[0];
  const std::int64_t step = walk.step()[1];
  std::vector<std::int64_t> counts(request.parts, 0);
  std::mutex mutex;
  for_each_chunk(whole(layer), pool_, [&](const Chunk& chunk, int) {
    std::vector<std::int64_t> found(request.parts, 0);
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
      walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
        for (std::int64_t begin = 0; begin < length; begin += piece) {
          const std::int64_t count = std::min(piece, length - begin);
          const auto* run = data + at[0] + begin * stride;
          if (stride == 1 && kernels.count_equal(run, count, request.key) == 0) continue;
          add_ties<Format>(run, count, stride, request.first + at[1] + begin * step, step, request,
                           found);
        }
      });
    });
    const std::lock_guard<std::mutex> lock(mutex);
    for (std::size_t p = 0; p < found.size(); ++p) counts[p] += found[p];
  });
  return counts;
}

}  // namespace lampfast::cpu
