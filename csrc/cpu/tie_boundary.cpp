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

std::int64_t count_equal_products(const Layer& layer, const Chunk& chunk, std::uint64_t product) {
  const Dtype dtype = layer.scales->codes;
  const Kernels& kernels = kernels_for(dtype);
  std::int64_t count = 0;
  for_each_code_stretch(
      layer, chunk, [&](const std::uint8_t* codes, std::int64_t length, double scale) {
        // Several codes if the scale is 0, else at most one.
        const std::uint64_t end = least_code(dtype, scale, product + 1);
        for (std::uint64_t code = least_code(dtype, scale, product); code < end; ++code) {
          count += kernels.count_equal(codes, length, code);
        }
      });
  return count;
}

// How many ties each chunk of a layer has, from its candidates or else from the weights.
std::vector<std::int64_t> count_by_chunk(const Ties& ties,
                                         const std::vector<CandidateSegment>* candidates) {
  const Layer& layer = ties.layer;
  const Kernels& kernels = kernels_for(layer.dtype);
  std::vector<std::int64_t> counts(static_cast<std::size_t>((layer.size - 1) / chunk_size + 1), 0);
  const auto count_of = [&](std::int64_t chunk_begin) -> std::int64_t& {
    return counts[static_cast<std::size_t>(chunk_begin / chunk_size)];
  };
  if (candidates != nullptr) {
    for (const CandidateSegment& segment : *candidates) {
      count_of(segment.chunk_begin) +=
          kernels.count_equal(segment.keys, segment.count, ties.threshold.key);
    }
    return counts;
  }
  if (compares_codes(layer)) {
    for_each_chunk(whole(layer), ties.pool, [&](const Chunk& chunk, int) {
      count_of(chunk.begin) += count_equal_products(layer, chunk, ties.threshold.key);
    });
    return counts;
  }
  with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    for_each_chunk(whole(layer), ties.pool, [&](const Chunk& chunk, int) {
      for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
        count_of(chunk.begin) += kernels.count_equal(elements, length, ties.threshold.key);
      });
    });
  });
  return counts;
}

// The index of the wanted-th tie from `begin` on, counted from 0; the layer's size if there are
// fewer, as another thread has changed them.
template <class Format>
std::int64_t find_from(const Ties& ties, std::int64_t begin, std::int64_t wanted) {
  using Key = typename Format::Storage;
  constexpr std::int64_t piece = test_sizes ? 5 : 1024;  // skipped as a whole if its ties do not do
  const Layer& layer = ties.layer;
  const Kernels& kernels = kernels_for(layer.dtype);
  std::int64_t found = layer.size;
  std::int64_t position = begin;
  const Chunk chunk{0, 0, begin, std::min(begin + chunk_size, layer.size)};
  for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
    for (std::int64_t first = 0; first < length && found == layer.size; first += piece) {
      const std::int64_t end = std::min(first + piece, length);
      const std::int64_t here =
          kernels.count_equal(elements + first, end - first, ties.threshold.key);
      if (here <= wanted) {
        wanted -= here;
        continue;
      }
      for (std::int64_t i = first; i < end && found == layer.size; ++i) {
        const bool is_tie = Format::key(elements[i]) == ties.threshold.key;
        if (is_tie && wanted-- == 0) found = position + i;
      }
    }
    position += length;
  });
  return found;
}

// In a layer whose positions are row-major indices: first the chunk in which the wanted tie lies,
// then the tie.
std::int64_t find_by_chunks(const Ties& ties, const std::vector<CandidateSegment>* candidates) {
  std::int64_t wanted = ties.threshold.ties;  // the wanted-th from here on is the first one kept
  std::int64_t begin = 0;
  for (const std::int64_t count : count_by_chunk(ties, candidates)) {
    if (wanted < count) break;
    wanted -= count;
    begin += chunk_size;
  }
  if (begin >= ties.layer.size) return ties.layer.size;
  return with_format(ties.layer.dtype,
                     [&](auto format) { return find_from<decltype(format)>(ties, begin, wanted); });
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
    const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices_}, Order::memory);
    const auto& step = walk.step();
    for_each_chunk(whole(layer), ties_.pool, [&](const Chunk& chunk, int) {
      std::vector<std::int64_t> chunk_counts(digits, 0);
      with_format(layer.dtype, [&](auto format) {
        using Format = decltype(format);
        using Key = typename Format::Storage;
        const auto key = static_cast<Key>(ties_.threshold.key);
        Key loaded[piece];
        walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
          const ElementRun run{at[0], step[0], at[1], step[1]};
          for (std::int64_t begin = 0; begin < length; begin += piece) {
            const std::int64_t count = std::min(piece, length - begin);
            const Key* elements = load(layer, run.from(begin), count, loaded);
            if (kernels.count_equal(elements, count, key) == 0) continue;
            for (std::int64_t i = 0; i < count; ++i) {
              const std::int64_t index = at[1] + (begin + i) * step[1];
              if (Format::key(elements[i]) != key) continue;
              if (index >> (bits + digit_bits) != prefix) continue;
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
  const bool by_chunks = positions_are_indices(layer.shape, layer.strides);
  return by_chunks ? find_by_chunks(ties, candidates) : DigitSearch(ties).find();
}

}  // namespace lampfast::cpu
