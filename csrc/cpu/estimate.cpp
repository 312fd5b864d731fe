// The host backend's part in the estimate: largest keys, and what the drawn elements tell.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "core/drawn_pieces.h"
#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/classify.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

// Small layers are drawn as a whole, large ones a part. Longer pieces would wait less for the
// memory, but neighbouring weights are often alike.
DrawnPieces pieces_of(const Layer& layer) {
  constexpr std::int64_t whole = test_sizes ? 12 : 1 << 12;
  constexpr std::int64_t least = test_sizes ? 32 : 1 << 13;
  constexpr std::int64_t most = test_sizes ? 128 : 1 << 21;
  constexpr std::int64_t longest = test_sizes ? 2 : 64;
  const std::int64_t size = layer.size;
  if (size <= whole) return DrawnPieces(size, size, std::max<std::int64_t>(size, 1));
  const std::int64_t part = std::max(size / 64, std::min(size / 8, least));
  return DrawnPieces(size, std::min(part, most), longest);
}

// The pieces [first, last) of a layer, which one task reads.
struct PieceRange {
  std::size_t position;  // of the layer among the ids
  DrawnPieces pieces;
  std::int64_t first;
  std::int64_t last;
};

// Calls body(piece, elements, step, length) for evenly spaced elements that make up the pieces.
template <class Element, class Body>
void for_each_drawn(const Layer& layer, const PieceRange& range, Body&& body) {
  const DrawnPieces& pieces = range.pieces;
  const auto* data = reinterpret_cast<const Element*>(layer.data);
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  constexpr std::int64_t ahead = 16;  // a draw waits for the memory, so ask early
  for (std::int64_t piece = range.first; piece < range.last; ++piece) {
    if (walk.is_one_run() && piece + ahead < range.last) {
      const std::int64_t soon = pieces.begin(piece + ahead);
      for (std::int64_t i = soon; i < pieces.end(soon); i += 64 / std::int64_t{sizeof(Element)}) {
        __builtin_prefetch(data + i * step);
      }
    }
    const std::int64_t begin = pieces.begin(piece);
    walk.runs(begin, pieces.end(begin), [&](auto, const auto& offsets, std::int64_t length) {
      body(piece, data + offsets[0], step, length);
    });
  }
}

// Bins of all magnitudes that a dtype has, of which a layer's histogram becomes a part.
class Bins {
 public:
  static constexpr int bits_per_octave = 5;
  static constexpr std::size_t most_bins = test_sizes ? 64 : 40 << bits_per_octave;

  template <class Format>
  LogHistogram histogram(const Layer& layer, const PieceRange& range) {
    using Key = typename Format::Storage;
    constexpr int shift = histogram_shift<Format>(bits_per_octave);
    counts_.resize(std::size_t{Format::not_finite >> shift} + 1);
    LogHistogram histogram;
    histogram.shift = shift;
    Key largest = 0;
    Key smallest = Format::not_finite - 1;
    for_each_drawn<Key>(
        layer, range, [&](std::int64_t, const Key* data, std::int64_t step, std::int64_t length) {
          for (std::int64_t i = 0; i < length; ++i) {
            // What is not finite is the partition's to report.
            const Key key = std::min<Key>(Format::key(data[i * step]), Format::not_finite - 1);
            histogram.zeros += key == 0 ? 1 : 0;
            largest = std::max(largest, key);
            smallest = std::min(smallest, key);
            ++counts_[key >> shift];
          }
          histogram.drawn += length;
        });
    take(smallest >> shift, largest >> shift, histogram);
    return histogram;
  }

 private:
  // Moves the bins [low, high] to a histogram, all but the highest ones as one.
  void take(std::size_t low, std::size_t high, LogHistogram& histogram) {
    if (histogram.drawn == 0) return;
    const std::size_t first = high < most_bins ? 0 : high - (most_bins - 1);
    histogram.first = first;
    histogram.counts.assign(high - first + 1, 0);
    for (std::size_t bin = low; bin <= high; ++bin) {
      histogram.counts[bin < first ? 0 : bin - first] += counts_[bin];
      counts_[bin] = 0;
    }
  }

  std::vector<std::uint32_t> counts_;  // zeros between calls
};

template <class Format>
GroupTallies tally_range(const Layer& layer, const PieceRange& range, const TallyRequest& request) {
  using Key = typename Format::Storage;
  constexpr std::int64_t most = classify_block;
  GroupTallies tallies;
  alignas(64) Key gathered[most];
  for_each_drawn<Key>(
      layer, range,
      [&](std::int64_t piece, const Key* data, std::int64_t step, std::int64_t length) {
        const auto group = static_cast<std::size_t>(DrawnPieces::group(piece));
        tallies.drawn[group] += static_cast<double>(length);
        const auto tally = [&](const Key* keys, std::int64_t count) {
          classify(layer.dtype, keys, count, {request.key, request.key}, request.scale, nullptr,
                   [&](const Classified& block, const Key*) {
                     tallies.below[group] += block.below;
                     tallies.above[group] += block.above_sum;
                   });
        };
        if (step == 1) {
          tally(data, length);
          return;
        }
        for (std::int64_t begin = 0; begin < length; begin += most) {
          const std::int64_t count = std::min(most, length - begin);
          for (std::int64_t i = 0; i < count; ++i) gathered[i] = data[(begin + i) * step];
          tally(gathered, count);
        }
      });
  return tallies;
}

// Adds up what look(range, worker) finds in the parts of every layer's draw.
template <class Result, class Look>
std::vector<Result> add_up_draws(const std::vector<Layer>& layers, const LayerIds& ids,
                                 ThreadPool& pool, Look&& look) {
  constexpr std::int64_t weights_per_draw = 4;  // that are read in the same time
  constexpr std::int64_t pieces_at_a_time = test_sizes ? 4 : 1 << 9;
  std::vector<PieceRange> ranges;
  std::int64_t drawn = 0;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    const DrawnPieces pieces = pieces_of(layers[ids[p]]);
    drawn += pieces.count() * pieces.length();
    for (std::int64_t first = 0; first < pieces.count(); first += pieces_at_a_time) {
      ranges.push_back({p, pieces, first, std::min(first + pieces_at_a_time, pieces.count())});
    }
  }
  std::vector<Result> results(ids.size());
  std::mutex mutex;
  pool.for_each(static_cast<std::int64_t>(ranges.size()), drawn * weights_per_draw,
                [&](std::int64_t task, int worker) {
                  const PieceRange& range = ranges[static_cast<std::size_t>(task)];
                  Result found = look(range, worker);
                  if (range.last - range.first == range.pieces.count()) {
                    results[range.position] = std::move(found);  // no other task works on it
                    return;
                  }
                  const std::lock_guard<std::mutex> lock(mutex);
                  results[range.position].add(found);
                });
  return results;
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
  std::vector<Bins> bins(static_cast<std::size_t>(pool_.size()));
  return add_up_draws<LogHistogram>(layers_, ids, pool_, [&](const PieceRange& range, int worker) {
    const Layer& layer = layers_[ids[range.position]];
    return with_format(layer.dtype, [&](auto format) {
      return bins[static_cast<std::size_t>(worker)].histogram<decltype(format)>(layer, range);
    });
  });
}

std::vector<GroupTallies> HostBackend::tally(const LayerIds& ids,
                                             const std::vector<TallyRequest>& requests) {
  return add_up_draws<GroupTallies>(layers_, ids, pool_, [&](const PieceRange& range, int) {
    const Layer& layer = layers_[ids[range.position]];
    return with_format(layer.dtype, [&](auto format) {
      return tally_range<decltype(format)>(layer, range, requests[range.position]);
    });
  });
}

}  // namespace lampfast::cpu
