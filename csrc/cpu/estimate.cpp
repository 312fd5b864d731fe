// The host backend's part in the estimate: largest keys, and histograms of small samples.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"
#include "cpu/sampling/sampled_estimate.h"

namespace lampfast::cpu {
namespace {

// Every draw is likely to miss the cache, so there are only as many as take a small part of the
// partition's time.
std::int64_t draws_of(const Layer& layer) {
  constexpr std::int64_t least = test_sizes ? 16 : 1 << 11;
  constexpr std::int64_t bytes_per_draw = 512;
  const std::int64_t share = layer.size * item_size(layer.dtype) / bytes_per_draw;
  return std::min(histogram_draws(layer.size), std::max(share, least));
}

// The leading bits of the drawn elements' keys. Keys that are not finite become the largest finite
// one: reporting them is left to the partition.
template <class Format>
std::vector<std::uint16_t> leading_bits(const Layer& layer, std::int64_t draws) {
  using Key = typename Format::Storage;
  std::vector<std::uint16_t> drawn;
  drawn.reserve(static_cast<std::size_t>(draws));
  const auto* data = reinterpret_cast<const Key*>(layer.data);
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  for (std::int64_t draw = 0; draw < draws; ++draw) {
    const std::int64_t at = drawn_position(layer.size, draws, draw);
    walk.runs(at, at + 1, [&](auto, const auto& offsets, auto) {
      const auto key = std::min<Key>(Format::key(data[offsets[0]]), Format::not_finite - 1);
      drawn.push_back(static_cast<std::uint16_t>(key >> histogram_shift<Format>()));
    });
  }
  return drawn;
}

LogHistogram draw_histogram(const Layer& layer) {
  LogHistogram histogram;
  histogram.drawn = draws_of(layer);
  const std::vector<std::uint16_t> drawn = with_format(layer.dtype, [&](auto format) {
    return leading_bits<decltype(format)>(layer, histogram.drawn);
  });
  if (drawn.empty()) return histogram;
  const int largest = *std::max_element(drawn.begin(), drawn.end());
  const int first = std::max(largest - (LogHistogram::bins - 1), 0);
  histogram.first = static_cast<std::uint64_t>(first);
  for (const int bits : drawn) {
    ++histogram.counts[static_cast<std::size_t>(std::max(bits - first, 0))];
  }
  return histogram;
}

}  // namespace

std::vector<std::uint64_t> HostBackend::largest_keys(const LayerIds& ids) {
  std::vector<std::uint64_t> largest(ids.size(), 0);
  std::mutex mutex;
  for_each_chunk(whole(layers_, ids), pool_, [&](const Chunk& chunk, int) {
    const Layer& layer = layers_[chunk.layer];
    const Kernels& kernels = kernels_for(layer.dtype);
    const std::uint64_t most = with_format(layer.dtype, [&](auto format) {
      using Key = typename decltype(format)::Storage;
      std::uint64_t key = 0;
      for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), chunk,
                       [&](const Key* elements, std::int64_t length) {
                         key = std::max(key, kernels.largest(elements, length));
                       });
      return key;
    });
    const std::lock_guard<std::mutex> lock(mutex);
    largest[chunk.position] = std::max(largest[chunk.position], most);
  });
  return largest;
}

std::vector<LogHistogram> HostBackend::draw(const LayerIds& ids) {
  std::vector<LogHistogram> histograms(ids.size());
  pool_.for_each(static_cast<std::int64_t>(ids.size()), ThreadPool::least_parallel_size,
                 [&](std::int64_t task, int) {
                   const auto position = static_cast<std::size_t>(task);
                   histograms[position] = draw_histogram(layers_[ids[position]]);
                 });
  return histograms;
}

std::optional<Estimate> HostBackend::estimate(const std::vector<double>& scales,
                                              std::int64_t count) {
  return estimate_by_sampling(layers_, scales, count, pool_);
}

}  // namespace lampfast::cpu
