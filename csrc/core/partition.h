// Partition: what one read of a layer is asked, what it finds below, inside and above an interval
// of keys, and what it stores. Findings merge in any order.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/compensated_sum.h"
#include "core/intervals.h"
#include "core/layer_threshold.h"

namespace lampfast {

// What one read of a layer is asked.
struct PartitionRequest {
  KeyInterval interval;
  double scale;        // for scaled_square (key_format.h)
  bool track_min_max;  // whether bins record their smallest and largest keys (on GPUs all do)
  bool of_candidates = false;   // whether stored candidates are read instead of the weights
  std::int64_t least_bins = 0;  // more bins than a small layer would have, to be merged with others
};

// The interval whose stored keys are wanted, and how many of them a partition has found there.
struct KeyRequest {
  KeyInterval interval;
  std::int64_t count;
};

// One of the equally wide parts of an interval of keys. The keys of its elements lie in [first,
// last], relative to the bin's own first key; unless smallest and largest keys are tracked, that is
// the whole bin. The sum of the scaled squares has the relative error
// error_bounds::bin_sum.
struct Bin {
  static constexpr std::uint64_t unbounded = ~std::uint64_t{0};

  std::int64_t count = 0;
  double sum = 0.0;
  std::uint64_t first = 0;
  std::uint64_t last = unbounded;

  // Merges the smallest and largest keys of further elements. Either all of a bin's elements are
  // tracked or none is.
  void widen(std::uint64_t smallest, std::uint64_t largest) {
    const bool is_first = first == 0 && last == unbounded;
    first = is_first ? smallest : std::min(first, smallest);
    last = is_first ? largest : std::max(last, largest);
  }
};

// What lies on either side of an interval of keys.
struct Sides {
  KeyInterval interval{};
  std::int64_t below = 0;
  std::int64_t above = 0;
  CompensatedSum above_sum;  // of the scaled squares

  std::int64_t beside() const { return below + above; }

  void add(const Sides& other) {
    below += other.below;
    above += other.above;
    above_sum.add(other.above_sum);
  }
};

// What lies beside an interval of keys, and all keys inside it, in any order.
struct KeysInside {
  Sides sides;
  std::vector<std::uint64_t> keys;
};

// What one read of a layer finds.
struct Partition {
  Sides sides;
  int bin_bits = 0;  // log2 of the number of keys in a bin
  std::vector<Bin> bins;
  // The relative error of what lies above the begin of any bin, where ranks have told each other
  // only how many keys the bins have, and sums follow from that; else 0.
  double counted_error = 0.0;

  Partition() = default;

  // Nothing found yet, with at most `wanted_bins` bins, each 2^bin_bits keys wide.
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

  // The smallest key inside, or no_key; its bin must be tracked.
  std::uint64_t smallest() const {
    for (std::size_t b = 0; b < bins.size(); ++b) {
      if (bins[b].count > 0) return sides.interval.low + (b << bin_bits) + bins[b].first;
    }
    return no_key;
  }
};

// What the last read of a layer has stored where the layer lives: the candidates, which are the
// keys inside its interval.
struct Stored {
  Sides sides;                   // of the interval of that read
  bool is_complete = false;      // whether all candidates are stored
  bool is_mask_written = false;  // whether that read wrote the mask, candidates left undecided

  // Whether the interval decides every element outside it: the threshold, of a layer of this size,
  // prunes all elements below the interval and keeps all above it.
  bool decides(const LayerThreshold& threshold, std::int64_t size) const {
    const KeyInterval& interval = sides.interval;
    return threshold.key >= interval.low &&
           (threshold.key < interval.high || threshold.pruned == size - sides.above);
  }
};

}  // namespace lampfast
