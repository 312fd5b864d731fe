// The host backend's part in the estimate: largest keys, and what the drawn elements tell.
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <mutex>
#include <utility>
#include <vector>

#include "core/drawn_pieces.h"
#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

// Small layers are drawn as a whole, large ones a part. Longer pieces would wait less for the
// memory, but neighbouring weights are often alike.
DrawnPieces pieces_of(const Layer& layer) {
  constexpr std::int64_t whole = test_sizes ? 12 : 1 << 12;
  constexpr std::int64_t least = test_sizes ? 32 : 1 << 13;
  constexpr std::int64_t most = test_sizes ? 128 : 1 << 20;
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

  std::int64_t most_elements() const { return (last - first) * pieces.length(); }
};

// Whether a layer is drawn as a whole and lies in one stretch of memory.
bool is_read_in_place(const Layer& layer, const DrawnPieces& pieces) {
  return pieces.count() == 1 && !layer.scales && is_row_major(layer.shape, layer.strides);
}

constexpr std::int64_t pieces_at_a_time = test_sizes ? 4 : 1 << 8;

std::size_t number_of(const PieceRange& range) {
  return static_cast<std::size_t>(range.first / pieces_at_a_time);
}

// Whether a draw of the layer is copied. Copies spare tallies the wait for the memory; a layer that
// is drawn as a whole is never tallied, and products of codes and scales take eight times as much
// memory as the codes.
bool is_copied(const Layer& layer, const DrawnPieces& pieces) {
  return pieces.count() > 1 && !layer.scales;
}

// Asks early for the elements of a piece, as a draw waits for the memory. It must be inlined: GCC
// takes a function that only prefetches for one without effects, and leaves calls of it out.
template <class Element>
[[gnu::always_inline]] inline void prefetch(const DrawnPieces& pieces, std::int64_t piece,
                                            const Element* data, std::int64_t step) {
  const std::int64_t begin = pieces.begin(piece);
  for (std::int64_t i = begin; i < pieces.end(begin); i += 64 / std::int64_t{sizeof(Element)}) {
    __builtin_prefetch(data + i * step);
  }
}

constexpr std::int64_t prefetched_ahead = 16;

// Calls body(piece, products, count) for the pieces of a layer with scales.
template <class Body>
void for_each_drawn_product(const Layer& layer, const PieceRange& range, Body&& body) {
  const DrawnPieces& pieces = range.pieces;
  const Strides indices = row_major_strides(layer.shape);
  const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &indices}, Order::memory);
  const auto& step = walk.step();
  alignas(64) std::array<std::uint64_t, most_gathered> products;
  for (std::int64_t piece = range.first; piece < range.last; ++piece) {
    if (walk.is_one_run() && piece + prefetched_ahead < range.last) {
      prefetch(pieces, piece + prefetched_ahead, layer.data, step[0]);
    }
    const std::int64_t begin = pieces.begin(piece);
    walk.runs(begin, pieces.end(begin), [&](auto, const auto& at, std::int64_t length) {
      const ElementRun run{at[0], step[0], at[1], step[1]};
      for (std::int64_t first = 0; first < length; first += most_gathered) {
        const std::int64_t count = std::min(most_gathered, length - first);
        load_products(layer, run.from(first), count, products.data());
        body(piece, products.data(), count);
      }
    });
  }
}

// Calls body(piece, elements, count) for contiguous elements that make up the pieces, or for copies
// that gather them.
template <class Element, class Body>
void for_each_drawn(const Layer& layer, const PieceRange& range, Body&& body) {
  if constexpr (sizeof(Element) == sizeof(std::uint64_t)) {
    if (layer.scales) return for_each_drawn_product(layer, range, body);
  }
  const DrawnPieces& pieces = range.pieces;
  const auto* data = reinterpret_cast<const Element*>(layer.data);
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
  const std::int64_t step = walk.step()[0];
  alignas(64) Element gathered[most_gathered];
  for (std::int64_t piece = range.first; piece < range.last; ++piece) {
    if (walk.is_one_run() && piece + prefetched_ahead < range.last) {
      prefetch(pieces, piece + prefetched_ahead, data, step);
    }
    const std::int64_t begin = pieces.begin(piece);
    walk.runs(begin, pieces.end(begin), [&](auto, const auto& offsets, std::int64_t length) {
      const Element* run = data + offsets[0];
      if (step == 1) {
        body(piece, run, length);
        return;
      }
      for (std::int64_t first = 0; first < length; first += most_gathered) {
        const std::int64_t count = std::min(most_gathered, length - first);
        for (std::int64_t i = 0; i < count; ++i) gathered[i] = run[(first + i) * step];
        body(piece, gathered, count);
      }
    });
  }
}

// Copies the elements of the pieces to `to`, group after group, and returns where each group ends.
// Kernels take long to begin and to end, beside what the few elements of a piece take.
template <class Element>
GroupEnds gather_groups(const Layer& layer, const PieceRange& range, Element* to) {
  const DrawnPieces& pieces = range.pieces;
  const auto group_of = [](std::int64_t piece) {
    return static_cast<std::size_t>(DrawnPieces::group(piece));
  };
  std::array<std::int64_t, draw_groups> next{};
  for (std::int64_t piece = range.first; piece < range.last; ++piece) {
    next[group_of(piece)] += pieces.length();
  }
  const std::int64_t begin_of_last = pieces.begin(range.last - 1);  // which may be shorter
  next[group_of(range.last - 1)] -= pieces.length() - (pieces.end(begin_of_last) - begin_of_last);
  GroupEnds ends;
  std::int64_t end = 0;
  for (std::size_t group = 0; group < draw_groups; ++group) {
    end += std::exchange(next[group], end);
    ends[group] = static_cast<std::int32_t>(end);
  }
  for_each_drawn<Element>(
      layer, range, [&](std::int64_t piece, const Element* from, std::int64_t count) {
        std::int64_t& at = next[group_of(piece)];
        std::memcpy(to + at, from, static_cast<std::size_t>(count) * sizeof(Element));
        at += count;
      });
  return ends;
}

// A thread's memory for what is drawn from a range of pieces.
class DrawBuffer {
 public:
  template <class Element>
  Element* get(const PieceRange& range) {
    const auto bytes = static_cast<std::size_t>(range.most_elements()) * sizeof(Element);
    words_.resize(std::max(words_.size(), (bytes + 7) / 8));
    return reinterpret_cast<Element*>(words_.data());
  }

 private:
  std::vector<std::uint64_t> words_;
};

// Counters for all magnitudes that a dtype has, of which a layer's histogram becomes a part.
class Counters {
 public:
  // Of elements that have been drawn from a layer, in ranges of the given pieces.
  template <class Format>
  LogHistogram histogram(const typename Format::Storage* keys, std::int64_t count, Dtype dtype,
                         const DrawnPieces& pieces) {
    // Where few elements are drawn, adding up many tables of many bins would take longer; and
    // tables of float64 are large.
    constexpr std::size_t tables = sizeof(typename Format::Storage) == 8 ? 1 : 4;
    return pieces.count() * pieces.length() <= few_drawn
               ? histogram<Format, 4, (tables + 1) / 2>(keys, count, dtype)
               : histogram<Format, 5, tables>(keys, count, dtype);
  }

 private:
  static constexpr std::int64_t few_drawn = 1 << 12;
  static constexpr int octaves = test_sizes ? 2 : 40;  // below the largest magnitude

  // With bins of 2^-Bits octaves. Equal keys often follow each other: with one table of counters,
  // every increment would wait for the one before it.
  template <class Format, int Bits, std::size_t Tables>
  LogHistogram histogram(const typename Format::Storage* keys, std::int64_t count, Dtype dtype) {
    constexpr int shift = histogram_shift<Format>(Bits);
    constexpr std::size_t bins = std::size_t{Format::magnitude_mask >> shift} + 1;
    counts_.resize(std::max(counts_.size(), Tables * bins));
    LogHistogram histogram;
    histogram.shift = shift;
    histogram.drawn = count;
    const std::uint64_t largest = kernels_for(dtype).largest(keys, count);
    count_keys<Format, shift, Tables>(keys, count);
    if (histogram.drawn > 0) take<Tables>(bins, octaves << Bits, largest >> shift, histogram);
    // What is not finite is the partition's to report: here it counts as the largest that is.
    histogram.limit(std::uint64_t{Format::not_finite - 1} >> shift);
    return histogram;
  }

  template <class Format, int shift, std::size_t Tables>
  void count_keys(const typename Format::Storage* keys, std::int64_t count) {
    constexpr std::size_t bins = std::size_t{Format::magnitude_mask >> shift} + 1;
    std::uint32_t* counts = counts_.data();
    std::int64_t i = 0;
    for (; i + std::int64_t{Tables} <= count; i += std::int64_t{Tables}) {
      for (std::size_t t = 0; t < Tables; ++t) {
        ++counts[t * bins + (Format::key(keys[i + static_cast<std::int64_t>(t)]) >> shift)];
      }
    }
    for (; i < count; ++i) ++counts[Format::key(keys[i]) >> shift];
  }

  // Moves the counts to a histogram, from the largest bin down: all small ones count as one.
  template <std::size_t Tables>
  void take(std::size_t bins, std::size_t most_bins, std::size_t largest, LogHistogram& histogram) {
    constexpr std::size_t bins_at_a_time = test_sizes ? 2 : 32;
    taken_.resize(std::max(taken_.size(), bins));
    histogram.zeros = take_bins<Tables>(bins, 0, 1);
    std::int64_t small = histogram.zeros;
    std::int64_t left = histogram.drawn - small;
    const std::size_t end = largest + 1;
    std::size_t lowest = end;  // of the bins that do not count as small
    for (std::size_t bin = end; bin > 1 && left > 0;) {
      const std::size_t begin = std::max(bin, bins_at_a_time + 1) - bins_at_a_time;
      const std::int64_t sum = take_bins<Tables>(bins, begin, bin);
      left -= sum;
      if (end - begin <= most_bins) {
        lowest = begin;
      } else {
        small += sum;
      }
      bin = begin;
    }
    // What has been changed since the largest key was found may have been counted beyond it.
    if (left > 0) std::fill(counts_.begin(), counts_.end(), 0U);
    histogram.first = lowest - 1;
    taken_[histogram.first] = static_cast<std::uint32_t>(small);
    histogram.counts.assign(taken_.data() + histogram.first, taken_.data() + end);
  }

  // Moves the counts of some bins to taken_ and returns their sum.
  template <std::size_t Tables>
  std::uint32_t take_bins(std::size_t bins, std::size_t begin, std::size_t end) {
    std::uint32_t sum = 0;
    for (std::size_t bin = begin; bin < end; ++bin) {
      std::uint32_t count = 0;
      for (std::size_t t = 0; t < Tables; ++t) {
        count += std::exchange(counts_[t * bins + bin], 0U);
      }
      taken_[bin] = count;
      sum += count;
    }
    return sum;
  }

  std::vector<std::uint32_t> counts_;  // zeros between calls
  std::vector<std::uint32_t> taken_;   // of each bin, once taken
};

template <class Format>
GroupTallies tally_groups(const typename Format::Storage* keys, const GroupEnds& ends, Dtype dtype,
                          const TallyRequest& request) {
  GroupTallies tallies;
  std::int64_t begin = 0;
  for (std::size_t group = 0; group < draw_groups; ++group) {
    const std::int64_t count = ends[group] - begin;
    const Tally found = kernels_for(dtype).tally(keys + begin, count, request.key, request.scale);
    tallies.drawn[group] = static_cast<double>(count);
    tallies.below[group] = found.below;
    tallies.above[group] = found.above;
    begin = ends[group];
  }
  return tallies;
}

// Tallies a chunk, for a probe.
template <class Format>
Tally tally_chunk(const Layer& layer, const Chunk& chunk, const TallyRequest& request) {
  Tally tally;
  if (compares_codes(layer)) {
    const Dtype dtype = layer.scales->codes;
    const Kernels& kernels = kernels_for(dtype);
    for_each_code_stretch(
        layer, chunk, [&](const std::uint8_t* codes, std::int64_t count, double scale) {
          Tally found = kernels.tally(codes, count, least_code(dtype, scale, request.key), 1.0);
          found.above *= scale * scale;
          tally.add(found);
        });
    return tally;
  }
  using Key = typename Format::Storage;
  const Kernels& kernels = kernels_for(layer.dtype);
  for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
    tally.add(kernels.tally(elements, length, request.key, request.scale));
  });
  return tally;
}

// Adds up what look(range, worker) finds in the parts of every layer's draw.
template <class Result, class Look>
std::vector<Result> add_up_draws(const std::vector<Layer>& layers, const LayerIds& ids,
                                 ThreadPool& pool, Look&& look) {
  constexpr std::int64_t weights_per_draw = 4;  // that are read in the same time
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
      for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
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
  std::vector<Counters> counters(static_cast<std::size_t>(pool_.size()));
  for (const std::size_t id : ids) {
    const std::int64_t count = pieces_of(layers_[id]).count();
    drawn_[id].resize(static_cast<std::size_t>((count + pieces_at_a_time - 1) / pieces_at_a_time));
  }
  std::vector<DrawBuffer> buffers(counters.size());
  return add_up_draws<LogHistogram>(layers_, ids, pool_, [&](const PieceRange& range, int worker) {
    const std::size_t id = ids[range.position];
    const Layer& layer = layers_[id];
    return with_format(layer.dtype, [&](auto format) {
      using Key = typename decltype(format)::Storage;
      const auto* keys = reinterpret_cast<const Key*>(layer.data);
      std::int64_t count = layer.size;
      if (!is_read_in_place(layer, range.pieces)) {
        DrawnCopy& copy = drawn_[id][number_of(range)];
        if (is_copied(layer, range.pieces)) {
          copy.elements = take_slab(budget_, range.most_elements() * item_size(layer.dtype));
        }
        Key* const to = copy.elements ? reinterpret_cast<Key*>(copy.elements.get())
                                      : buffers[static_cast<std::size_t>(worker)].get<Key>(range);
        copy.ends = gather_groups(layer, range, to);
        keys = to;
        count = copy.ends.back();
      }
      return counters[static_cast<std::size_t>(worker)].histogram<decltype(format)>(
          keys, count, layer.dtype, range.pieces);
    });
  });
}

std::vector<GroupTallies> HostBackend::tally(const LayerIds& ids,
                                             const std::vector<TallyRequest>& requests) {
  std::vector<DrawBuffer> buffers(static_cast<std::size_t>(pool_.size()));
  return add_up_draws<GroupTallies>(layers_, ids, pool_, [&](const PieceRange& range, int worker) {
    const std::size_t id = ids[range.position];
    const Layer& layer = layers_[id];
    return with_format(layer.dtype, [&](auto format) {
      using Key = typename decltype(format)::Storage;
      DrawnCopy copy;
      if (!drawn_[id].empty()) copy = drawn_[id][number_of(range)];
      const Key* keys = reinterpret_cast<const Key*>(copy.elements.get());
      if (keys == nullptr) {
        Key* const to = buffers[static_cast<std::size_t>(worker)].get<Key>(range);
        copy.ends = gather_groups(layer, range, to);
        keys = to;
      }
      return tally_groups<decltype(format)>(keys, copy.ends, layer.dtype, requests[range.position]);
    });
  });
}

std::vector<Tally> HostBackend::probe(const LayerIds& ids,
                                      const std::vector<TallyRequest>& requests) {
  std::vector<Tally> tallies(ids.size());
  std::mutex mutex;
  for_each_chunk(whole(layers_, ids), pool_, [&](const Chunk& chunk, int) {
    const Layer& layer = layers_[chunk.layer];
    const Tally tally = with_format(layer.dtype, [&](auto format) {
      return tally_chunk<decltype(format)>(layer, chunk, requests[chunk.position]);
    });
    const std::lock_guard<std::mutex> lock(mutex);
    tallies[chunk.position].add(tally);
  });
  return tallies;
}

}  // namespace lampfast::cpu
