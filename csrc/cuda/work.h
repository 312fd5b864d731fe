// What passes between the host and the kernels: plain data, and the sizes that both count in.
//
// A block of threads reads one span of a layer, tile by tile. All spans of all layers are one
// launch (for each dtype), so that a thousand small layers do not make a thousand launches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/compensated_sum.h"
#include "core/error_bounds.h"
#include "core/host_device.h"
#include "core/key_format.h"
#include "core/layer.h"
#include "core/test_sizes.h"
#include "core/uint128.h"
#include "cuda/runtime.h"

namespace lampfast::cuda {

constexpr int vector_bytes = 16;                       // that a thread loads at once
constexpr int vectors_in_flight = test_sizes ? 1 : 2;  // that it loads before it uses the first
constexpr int tiles_in_span = test_sizes ? 2 : 16;
constexpr int tile_bytes = block_threads * vectors_in_flight * vector_bytes;
constexpr std::int64_t span_bytes = std::int64_t{tile_bytes} * tiles_in_span;

// In elements of a type.
template <class Key>
constexpr int vector_size = vector_bytes / static_cast<int>(sizeof(Key));
template <class Key>
constexpr int tile_size = tile_bytes / static_cast<int>(sizeof(Key));

// A thread adds the squares of its share of a span plainly, a block those of a span's bins.
static_assert(tiles_in_span * vectors_in_flight * vector_size<std::uint8_t> <=
              error_bounds::most_plain_terms);
static_assert(span_bytes <= error_bounds::most_bin_terms);  // of elements of one byte

LAMPFAST_HOST_DEVICE constexpr std::int64_t spans_of(std::int64_t size, std::int64_t item_size) {
  return (size * item_size + span_bytes - 1) / span_bytes;
}

// One axis of an order in which elements are visited, and how far one element along it leads in the
// layer's memory, in its target's, and in the row-major index.
struct VisitAxis {
  std::int64_t extent;
  std::int64_t source;
  std::int64_t target;
  std::int64_t index;
};

struct ElementOffsets {
  std::int64_t source;
  std::int64_t target;
  std::int64_t index;
};

// Axes from the outermost in; none where all three count alike.
struct VisitOrder {
  const VisitAxis* axes;
  int count;

  LAMPFAST_HOST_DEVICE ElementOffsets at(std::int64_t position) const {
    if (count == 0) return {position, position, position};
    ElementOffsets spot{0, 0, 0};
    for (int a = count; a-- > 0;) {
      const std::int64_t outer = position / axes[a].extent;
      const std::int64_t step = position - outer * axes[a].extent;
      spot.source += step * axes[a].source;
      spot.target += step * axes[a].target;
      spot.index += step * axes[a].index;
      position = outer;
    }
    return spot;
  }
};

// A layer's part in a launch.
struct Work {
  const std::byte* data;
  std::byte* target;
  std::int64_t size;
  std::int64_t first_block;  // of those that work on it
  std::int64_t first_span;   // among the spans of all of the backend's layers
  std::int64_t first_part;   // of its rows, as they are added up (sum_rows)
  std::uint64_t low;         // the interval, or of a threshold the key
  std::uint64_t high;
  std::int64_t ties;   // of a threshold
  std::int64_t share;  // how many candidates may be stored
  std::int64_t out;    // where what is found goes, in elements
  double scale;
  int bin_bits;
  int tie_bin;           // which bin of a row counts the ties, or -1 where tie_counts does
  int target_size;       // bytes of an element
  bool dense;            // positions are places in memory, the target's too
  bool aligned;          // and vectors can be loaded and stored
  bool own_target;       // the target is the layer itself
  VisitOrder by_memory;  // the order of positions
  VisitOrder by_index;   // the row-major order
};

// What a block found in its span; and the sum of many such.
struct Row {
  static constexpr int bins = test_sizes ? 8 : 64;

  std::uint32_t below;
  std::uint32_t inside;
  CompensatedSum above_sum;
  std::uint32_t counts[bins];
  // The smallest and the largest key, counted from the bin's first one; without the lowest bits
  // where a bin has more keys than fit (key_shift).
  std::uint32_t firsts[bins];
  std::uint32_t lasts[bins];
  double sums[bins];
};
LAMPFAST_HOST_DEVICE constexpr int key_shift(int bin_bits) {
  return bin_bits > 32 ? bin_bits - 32 : 0;
}

constexpr std::int64_t rows_in_part = block_threads;

// Candidates of one span: the keys from an offset in the store on, and behind them their places in
// the span.
struct Segment {
  std::uint64_t offset;
  std::uint32_t count;
  std::uint32_t next;  // of the same span, or none
};
constexpr std::uint32_t no_segment = 0xffffffff;

LAMPFAST_HOST_DEVICE constexpr std::uint64_t rounded(std::uint64_t bytes) {
  return (bytes + 15) / 16 * 16;
}
template <class Key>
LAMPFAST_HOST_DEVICE constexpr std::uint64_t segment_bytes(std::uint64_t count) {
  return rounded(count * sizeof(Key)) + rounded(count * sizeof(std::uint16_t));
}

// Candidates are stored where narrowing the interval to single keys would take many reads.
template <class Key>
constexpr bool stores = sizeof(Key) >= 4;
// Calls body(Format{}) for a dtype whose candidates are stored.
template <class Body>
void with_stored_format(Dtype dtype, Body&& body) {
  with_format(dtype, [&](auto format) {
    using Format = decltype(format);
    if constexpr (stores<typename Format::Storage>) body(format);
  });
}

// As many are put together before they are counted and stored.
template <class Key>
constexpr int staged_reserve = tile_size<Key> / 4;

// Where candidates are stored, and how much of it is in use.
struct Store {
  std::byte* keys;
  std::uint64_t bytes;
  Segment* segments;
  std::uint32_t segment_limit;
  unsigned long long* used_bytes;
  std::uint32_t* used_segments;
  std::uint32_t* chains;      // of every span its last segment
  unsigned long long* taken;  // of every layer at work the candidates,
  std::uint32_t* incomplete;  // and whether some were not stored
};

// What is in a layer now. Atomic operations combine what blocks find.
struct DeviceStats {
  unsigned long long zeros;
  unsigned long long smallest;  // key but zero
  unsigned long long largest;
  unsigned long long first_not_finite;  // row-major index
};

// A layer's exact sum of squares, for each exponent in so many digits, which are added up apart.
constexpr int digit_bits = 16;
template <class Format>
constexpr int digits_of_square = (2 * (Format::mantissa_bits + 1) + digit_bits - 1) / digit_bits;
template <class Format>
constexpr int digits_of_sum = Format::exponents * digits_of_square<Format>;
constexpr int most_digits = digits_of_sum<Float64>;

}  // namespace lampfast::cuda
