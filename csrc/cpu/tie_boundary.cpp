// Counts ties by chunk of the layer, or by leading bits of their row-major indices, and then
// searches only the chunk or the indices that hold the boundary.
#include "cpu/tie_boundary.h"

#include <algorithm>
#include <mutex>
#include <vector>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

struct Ties {
  const Layer& layer;
  const LayerThreshold& threshold;
  ThreadPool& pool;
};

// For a layer whose elements lie in row-major order: counts the ties of each chunk, in its
// candidates or else in the weights, then searches the chunk that has the first kept one.
std::int64_t find_in_row_major(const Ties& ties, const std::vector<CandidateSegment>* candidates) {
  const Layer& layer = ties.layer;
  const LayerThreshold& threshold = ties.threshold;
  const Kernels& kernels = kernels_for(layer.dtype);
  const std::int64_t width = item_size(layer.dtype);
  std::vector<std::int64_t> counts(static_cast<std::size_t>((layer.size - 1) / chunk_size + 1), 0);
  if (candidates != nullptr) {
    for (const CandidateSegment& segment : *candidates) {
      counts[static_cast<std::size_t>(segment.chunk_begin / chunk_size)] +=
          kernels.count_equal(segment.keys, segment.count, threshold.key);
    }
  } else {
    for_each_chunk(whole(layer), ties.pool, [&](const Chunk& chunk, int) {
      counts[static_cast<std::size_t>(chunk.begin / chunk_size)] = kernels.count_equal(
          layer.data + chunk.begin * width, chunk.end - chunk.begin, threshold.key);
    });
  }
  // The wanted-th tie from here on, counted from 0, is the first kept one.
  std::int64_t wanted = threshold.ties;
  std::int64_t begin = 0;
  for (const std::int64_t count : counts) {
    if (wanted < count) break;
    wanted -= count;
    begin += chunk_size;
  }
  if (begin >= layer.size) return layer.size;
  return with_format(layer.dtype, [&, wanted, begin](auto format) mutable {
    using Format = decltype(format);
    const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
    for (std::int64_t i = begin;; ++i) {
      if (Format::key(data[i]) == threshold.key && wanted-- == 0) return i;
    }
  });
}

// For any other layer: determines the row-major index of the first kept tie a few bits per read, so
// that no list of the ties is needed.
class DigitSearch {
 public:
  explicit DigitSearch(const Ties& ties)
      : ties_(ties), indices_(row_major_strides(ties.layer.shape)) {}

  std::int64_t find() const {
    int bits = 0;
    while ((ties_.layer.size - 1) >> bits > 0) ++bits;
    std::int64_t prefix = 0;
    // The wanted-th tie with the prefix, counted from 0, is the first kept one.
    std::int64_t wanted = ties_.threshold.ties;
    while (bits > 0) {
      const int digit_bits = std::min(bits, most_digit_bits);
      bits -= digit_bits;
      const std::vector<std::int64_t> counts = count(prefix, bits, digit_bits);
      std::size_t digit = 0;
      for (; wanted >= counts[digit] && digit + 1 < counts.size(); ++digit) wanted -= counts[digit];
      prefix = prefix << digit_bits | static_cast<std::int64_t>(digit);
    }
    return prefix;
  }

 private:
  static constexpr int most_digit_bits = test_sizes ? 2 : 12;
  static constexpr std::int64_t piece = test_sizes ? 5 : 64;  // skipped as a whole if it has no tie

  // How many of the ties whose index starts with the prefix have each value of the next digit.
  std::vector<std::int64_t> count(std::int64_t prefix, int bits, int digit_bits) const {
    const Layer& layer = ties_.layer;
    const Kernels& kernels = kernels_for(layer.dtype);
    const auto digits = std::size_t{1} << digit_bits;
    std::vector<std::int64_t> counts(digits, 0);
    std::mutex mutex;
    const StridedWalk<2, 1> walk(layer.shape, {&layer.strides, &indices_}, Order::memory);
    const std::int64_t step = walk.step()[1];
    for_each_chunk(whole(layer), ties_.pool, [&](const Chunk& chunk, int) {
      std::vector<std::int64_t> chunk_counts(digits, 0);
      with_format(layer.dtype, [&](auto format) {
        using Format = decltype(format);
        using Key = typename Format::Storage;
        const auto* data = reinterpret_cast<const Key*>(layer.data);
        const auto key = static_cast<Key>(ties_.threshold.key);
        walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
          const Key* run = data + offsets[0];
          for (std::int64_t begin = 0; begin < length; begin += piece) {
            const std::int64_t end = std::min(begin + piece, length);
            if (kernels.count_equal(run + begin, end - begin, key) == 0) continue;
            for (std::int64_t i = begin; i < end; ++i) {
              const std::int64_t index = offsets[1] + i * step;
              if (Format::key(run[i]) != key || index >> (bits + digit_bits) != prefix) continue;
              ++chunk_counts[static_cast<std::size_t>(index >> bits) & (digits - 1)];
            }
          }
        });
      });
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t d = 0; d < digits; ++d) counts[d] += chunk_counts[d];
    });
    return counts;
  }

  const Ties& ties_;
  Strides indices_;
};

}  // namespace

std::int64_t first_kept_tie(const Layer& layer, const LayerThreshold& threshold,
                            const std::vector<CandidateSegment>* candidates, ThreadPool& pool) {
  if (threshold.ties == 0) return 0;
  const Ties ties{layer, threshold, pool};
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  return walk.is_one_run() ? find_in_row_major(ties, candidates) : DigitSearch(ties).find();
}

}  // namespace lampfast::cpu
