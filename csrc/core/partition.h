// Partition: what one read of a layer is asked, what it finds on either side of and inside an
// interval of keys, and what it stores. What is found merges in any order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/compensated_sum.h"
#include "core/intervals.h"
#include "core/layer_threshold.h"

namespace lampfast {

// What a read is asked.
struct PartitionRequest {
  KeyInterval interval;
  double scale;        // for scaled_square (key_format.h)
  bool track_min_max;  // whether bins are to know their smallest and largest keys (on GPUs all do)
};

// Which stored keys are asked for, and how many of them a partition has found.
struct KeyRequest {
  KeyInterval interval;
  std::int64_t count;
};

// An equal share of an interval's keys. Its elements' keys lie in [first, last], counted from the
// bin's first key, where that is closer than the whole bin. The sum of their scaled squares has the
// relative error error_bounds::bin_sum.
struct Bin {
  static constexpr std::uint64_t unbounded = ~std::uint64_t{0};

  std::int64_t count = 0;
  double sum = 0.0;
  std::uint64_t first = 0;
  std::uint64_t last = unbounded;

  // To elements with these smallest and largest keys; what was there before has been bounded by its
  // own.
  void widen(std::uint64_t smallest, std::uint64_t largest) {
    const bool is_new = first == 0 && last == unbounded;
    first = is_new ? smallest : std::min(first, smallest);
    last = is_new ? largest : std::max(last, largest);
  }
};

// What lies on either side of an interval.
struct Sides {
  KeyInterval interval{};
  std::int64_t below = 0;
  std::int64_t above = 0;
  CompensatedSum above_sum;  // of the scaled squares

  void add(const Sides& other) {
    below += other.below;
    above += other.above;
    above_sum.add(other.above_sum);
  }
};

// What a read finds.
struct Partition {
  Sides sides;
  int bin_bits = 0;  // log2 of the number of keys in a bin
  std::vector<Bin> bins;

  Partition() = default;

  // Nothing yet, with as many bins as wanted or somewhat fewer, each a power of two of keys wide.
  Partition(const KeyInterval& interval, std::int64_t wanted_bins) {
    sides.interval = interval;
    const std::uint64_t keys = interval.high - interval.low;
    while ((keys >> bin_bits) >= static_cast<std::uint64_t>(wanted_bins)) ++bin_bits;
    bins.resize(static_cast<std::size_t>((keys >> bin_bits) + 1));
  }

  std::int64_t inside() const {
    std::int64_t count = 0;
    for (const Bin& bin : bins) count += bin.count;
    return count;
  }
};

// What a read stores: the keys inside its interval, the candidates, where the layer lives.
struct Stored {
  Sides sides;                   // of that interval
  bool is_complete = false;      // whether all of them are stored
  bool is_mask_written = false;  // whether the mask was written then, the candidates left undecided

  // Whether every element outside the interval is on the same side of the threshold as of the
  // interval, in a layer of this size.
  bool decides(const LayerThreshold& threshold, std::int64_t size) const {
    const KeyInterval& interval = sides.interval;
    return threshold.key >= interval.low &&
           (threshold.key < interval.high || threshold.pruned == size - sides.above);
  }
};

}  // namespace lampfast
