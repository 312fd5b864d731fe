// What passes between the host and the kernels: plain data, and the sizes in which both divide the
// layers.
//
// A block of threads reads one span of a layer, tile by tile. The spans of all layers of one dtype
// are one launch, so that a thousand small layers do not take a thousand launches.
#pragma once

#include <cstddef>
#include <cstdint>

#include "core/compensated_sum.h"
#include "core/drawn_pieces.h"
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

// The same sizes in elements of a type.
template <class Key>
constexpr int vector_size = vector_bytes / static_cast<int>(sizeof(Key));
template <class Key>
constexpr int tile_size = tile_bytes / static_cast<int>(sizeof(Key));

// Without compensation, a thread adds up the squares of its share of a span, and a block those of
// each of a span's bins.
static_assert(tiles_in_span * vectors_in_flight * vector_size<std::uint8_t> <=
              error_bounds::most_plain_terms);
static_assert(span_bytes <= error_bounds::most_bin_terms);  // of elements of one byte

LAMPFAST_HOST_DEVICE constexpr std::int64_t spans_of(std::int64_t size, std::int64_t item_size) {
  return (size * item_size + span_bytes - 1) / span_bytes;
}
// Each span makes one partial sum of a bin.
static_assert(test_sizes || spans_of(error_bounds::most_layer_elements, sizeof(double)) <=
                                error_bounds::most_bin_merges);

// One axis of a visiting order: its extent, and the distance from one element along it to the next
// in the layer's memory, in its target's, and in the row-major index.
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

// Axes, outermost first; none if all three offsets of an element are its position.
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

// Where the ties of each span are counted, if only some of a layer's are pruned: in a bin of its
// row, or in tie_counts by count_stored_ties or count_ties.
enum class TieCounts : std::uint8_t { none, in_rows, of_candidates, of_weights };

// A layer's part in a launch.
struct Work {
  const std::byte* data;
  std::byte* target;
  std::int64_t size;
  std::int64_t first_block;  // the first of the blocks that work on it
  std::int64_t first_span;   // its first span among those of all of the backend's layers
  std::int64_t first_part;   // the first of the parts into which its rows are added up (sum_rows)
  std::uint64_t low;         // the interval's ends; `low` may also be the key of a threshold
  std::uint64_t high;
  std::int64_t ties;   // of the threshold
  std::int64_t share;  // how many of its candidates may be stored,
  std::int64_t room;   // and how many collected
  std::int64_t out;    // where its results begin in an output array, in elements
  double scale;
  int bin_bits;
  TieCounts tie_counts;
  int tie_bin;           // which bin of a row counts the ties, if rows do
  int target_size;       // bytes of an element
  bool dense;            // positions are offsets in its memory and in the target's
  bool aligned;          // and vectors can be loaded and stored
  bool own_target;       // the target is the layer itself
  bool is_plain;         // a launch may read and write it in vectors, in the order of its positions
  VisitOrder by_memory;  // the order of positions
  VisitOrder by_index;   // the row-major order
};

// What a block finds in its span; or the sum of several rows.
struct Row {
  static constexpr int bins = test_sizes ? 8 : 64;

  std::uint32_t below;
  std::uint32_t inside;
  CompensatedSum above_sum;
  std::uint32_t counts[bins];
  // The smallest and the largest key, relative to the bin's first one; without the lowest bits if
  // they do not fit (key_shift).
  std::uint32_t firsts[bins];
  std::uint32_t lasts[bins];
  double sums[bins];
};
LAMPFAST_HOST_DEVICE constexpr int key_shift(int bin_bits) {
  return bin_bits > 32 ? bin_bits - 32 : 0;
}

constexpr std::int64_t rows_in_part = block_threads;

// Some of the candidates of one span: from `offset` on the store has their keys, and behind these
// their places in the span.
struct Segment {
  std::uint64_t offset;
  std::uint32_t count;
  std::uint32_t next;  // another segment of the span, or no_segment
};
constexpr std::uint32_t no_segment = 0xffffffff;

LAMPFAST_HOST_DEVICE constexpr std::uint64_t rounded(std::uint64_t bytes) {
  return (bytes + 15) / 16 * 16;
}
template <class Key>
LAMPFAST_HOST_DEVICE constexpr std::uint64_t segment_bytes(std::uint64_t count) {
  return rounded(count * sizeof(Key)) + rounded(count * sizeof(std::uint16_t));
}

// Candidates are only stored where narrowing the interval to single keys would otherwise take many
// reads of the weights.
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

// A block stages candidates in shared memory until there are more than this many, then counts and
// stores them together.
template <class Key>
constexpr int staged_reserve = tile_size<Key> / 4;

// Where candidates are stored, and how much of that is in use.
struct Store {
  std::byte* keys;
  std::uint64_t bytes;
  Segment* segments;
  std::uint32_t segment_limit;
  unsigned long long* used_bytes;
  std::uint32_t* used_segments;
  std::uint32_t* chains;      // by span: its last segment, or no_segment
  unsigned long long* taken;  // by Work: how many candidates have asked for a place,
  std::uint32_t* incomplete;  // and whether some were not stored

  // The keys of a segment, and the places of its `count` keys, which lie behind them.
  template <class Key>
  LAMPFAST_HOST_DEVICE Key* keys_at(std::uint64_t offset) const {
    return reinterpret_cast<Key*>(keys + offset);
  }
  template <class Key>
  LAMPFAST_HOST_DEVICE std::uint16_t* places_at(std::uint64_t offset, std::uint64_t count) const {
    return reinterpret_cast<std::uint16_t*>(keys + offset + rounded(count * sizeof(Key)));
  }
};

// Histograms and tallies of draws (core/log_histogram.h, core/group_tallies.h). 16 bits are enough
// for the elements that are drawn on a GPU.
constexpr std::int64_t most_draws = test_sizes ? 64 : 1 << 15;

struct DeviceHistogram {
  static constexpr int bins = 512;
  static constexpr int bits_per_octave = 4;

  std::uint64_t first;
  std::uint32_t drawn;
  std::uint32_t zeros;
  std::uint16_t counts[bins];
};

struct DeviceTallies {
  std::uint32_t drawn[draw_groups];
  std::uint32_t below[draw_groups];
  double above[draw_groups];
};

// Statistics of the weights that a layer has now. Blocks merge what they find by atomic operations.
struct DeviceStats {
  unsigned long long zeros;
  unsigned long long smallest;  // key above 0
  unsigned long long largest;
  unsigned long long first_not_finite;  // row-major index
};

// The exact sum of a layer's squares: for each exponent, every digit of the squared mantissas is
// summed separately, in 64 bits.
constexpr int digit_bits = 16;
template <class Format>
constexpr int digits_of_square = (2 * (Format::mantissa_bits + 1) + digit_bits - 1) / digit_bits;
template <class Format>
constexpr int digits_of_sum = Format::exponents * digits_of_square<Format>;
constexpr int most_digits = digits_of_sum<Float64>;

}  // namespace lampfast::cuda
