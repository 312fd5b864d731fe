// Partition on a GPU: one streaming read. Candidates are staged in shared memory, then counted in
// bins and stored.
#include <cub/block/block_reduce.cuh>

#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

constexpr unsigned all_lanes = 0xffffffff;

struct AddSums {
  __device__ CompensatedSum operator()(CompensatedSum a, const CompensatedSum& b) const {
    a.add(b);
    return a;
  }
};

using ReduceCount = cub::BlockReduce<std::uint32_t, block_threads>;
using ReduceSum = cub::BlockReduce<CompensatedSum, block_threads>;

// The bins of a block, in shared memory.
struct Bins {
  std::uint32_t counts[Row::bins];
  std::uint32_t firsts[Row::bins];
  std::uint32_t lasts[Row::bins];
  double sums[Row::bins];
  union {
    typename ReduceCount::TempStorage count;
    typename ReduceSum::TempStorage sum;
  } reduce;

  __device__ void begin() {
    for (int s = static_cast<int>(threadIdx.x); s < Row::bins; s += block_threads) {
      counts[s] = 0;
      firsts[s] = ~0U;
      lasts[s] = 0;
      sums[s] = 0.0;
    }
    __syncthreads();
  }

  // Adds the keys of the lanes that have one (`is_there`). All lanes of a warp must call this.
  template <class Format>
  __device__ void add(const Work& work, bool is_there, typename Format::Storage key) {
    const std::uint64_t place = is_there ? key - work.low : 0;
    const auto bin = static_cast<int>(place >> work.bin_bits);
    const std::uint64_t in_bin = place & ((std::uint64_t{1} << work.bin_bits) - 1);
    const Entry own{1, static_cast<std::uint32_t>(in_bin >> key_shift(work.bin_bits)),
                    static_cast<std::uint32_t>(in_bin >> key_shift(work.bin_bits)),
                    work.bin_bits > 0 ? scaled_square<Format>(key, work.scale) : 0.0};
    // Ties crowd into a few bins, where the atomic operations of many lanes would wait for each
    // other: such lanes are combined first.
    unsigned open = __ballot_sync(all_lanes, is_there);
    constexpr int crowds = 3;
    constexpr int least_crowd = 8;
    for (int i = 0; i < crowds && open != 0; ++i) {
      const int crowded = __shfl_sync(all_lanes, bin, __ffs(static_cast<int>(open)) - 1);
      const bool is_mine = is_there && bin == crowded;
      const unsigned crowd = __ballot_sync(all_lanes, is_mine);
      if (__popc(crowd) < least_crowd) break;
      const Entry all = combined(is_mine ? own : Entry{0, ~0U, 0, 0.0});
      if (threadIdx.x % 32 == 0) put(crowded, all);
      if (is_mine) is_there = false;
      open &= ~crowd;
    }
    if (is_there) put(bin, own);
  }

  // `below` and `above_sum` are this thread's.
  __device__ void end(std::uint32_t below, double above_sum, Row& row) {
    __syncthreads();
    const std::uint32_t all_below = ReduceCount(reduce.count).Sum(below);
    __syncthreads();
    const CompensatedSum all_above =
        ReduceSum(reduce.sum).Reduce(CompensatedSum{above_sum, 0.0}, AddSums{});
    for (int s = static_cast<int>(threadIdx.x); s < Row::bins; s += block_threads) {
      row.counts[s] = counts[s];
      row.firsts[s] = firsts[s];
      row.lasts[s] = lasts[s];
      row.sums[s] = sums[s];
    }
    if (threadIdx.x != 0) return;
    std::uint32_t inside = 0;
    for (int s = 0; s < Row::bins; ++s) inside += counts[s];
    row.below = all_below;
    row.inside = inside;
    row.above_sum = all_above;
  }

 private:
  struct Entry {
    std::uint32_t count;
    std::uint32_t first;
    std::uint32_t last;
    double sum;
  };

  // Combines the entries of all lanes; lane 0 has the result.
  __device__ static Entry combined(Entry own) {
    for (unsigned distance = 16; distance > 0; distance /= 2) {
      own.count += __shfl_down_sync(all_lanes, own.count, distance);
      const std::uint32_t first = __shfl_down_sync(all_lanes, own.first, distance);
      const std::uint32_t last = __shfl_down_sync(all_lanes, own.last, distance);
      own.first = first < own.first ? first : own.first;
      own.last = last > own.last ? last : own.last;
      own.sum += __shfl_down_sync(all_lanes, own.sum, distance);
    }
    return own;
  }

  __device__ void put(int bin, const Entry& entry) {
    atomicAdd(&counts[bin], entry.count);
    atomicMin(&firsts[bin], entry.first);
    atomicMax(&lasts[bin], entry.last);
    // The sums of single keys stay 0, as they follow from the counts.
    if (entry.sum > 0.0) atomicAdd(&sums[bin], entry.sum);
  }
};

// What the byte (Bytes) of an element says; it is 0 below the interval.
constexpr std::uint32_t inside_byte = 1;
constexpr std::uint32_t above_byte = 2;

// This thread's elements of a tile.
template <class Key>
struct Share {
  Vector<Key> vectors[vectors_in_flight];  // without signs
  Bytes<Key> sides[vectors_in_flight];
};

// The candidates of the last few tiles, until there are enough to be counted and stored together.
template <class Format>
struct Staging {
  using Key = typename Format::Storage;
  static constexpr int room = tile_size<Key> + staged_reserve<Key>;

  Key keys[room];
  std::uint16_t places[stores<Key> ? room : 1];  // in the span
  Vector<Key> tile[vectors_in_flight][block_threads];
  std::uint32_t count;
  std::uint64_t offset;  // in the store
  bool is_stored;

  // Adds this thread's candidates. The largest number that a thread gets is how many are staged.
  __device__ std::uint32_t add(const Share<Key>& share, int tile_begin) {
    constexpr int words = Bytes<Key>::words;
    static_assert(vectors_in_flight * words <= 8);  // bits in a byte
    std::uint32_t own = 0;                          // in bit 8 * (e % 4) + i: element e of word i
#pragma unroll
    for (int i = 0; i < vectors_in_flight * words; ++i) {
      own |= share.sides[i / words].all_with(inside_byte).word[i % words] << i;
    }
    if (__any_sync(all_lanes, own != 0) == 0) return 0;
    // The compiler makes one operation of those of a warp, and a scan for what each lane gets.
    std::uint32_t at = atomicAdd(&count, static_cast<std::uint32_t>(__popc(own)));
    // Registers have no addresses by which a candidate could be taken from them.
    if (own != 0) {
#pragma unroll
      for (int v = 0; v < vectors_in_flight; ++v) tile[v][threadIdx.x] = share.vectors[v];
    }
    for (; own != 0; own &= own - 1) {
      const auto bit = static_cast<unsigned>(__ffs(static_cast<int>(own)) - 1);
      const unsigned v = bit % 8 / words;
      const unsigned e = bit % 8 % words * 4 + bit / 8;
      keys[at] = tile[v][threadIdx.x].at[e];
      if constexpr (stores<Key>) {
        const int first = SpanAccess<Key, true>::place(tile_begin, static_cast<int>(v));
        places[at] = static_cast<std::uint16_t>(first + static_cast<int>(e));
      }
      ++at;
    }
    return at;
  }

  // Counts and stores the staged candidates. All threads must call this, with a barrier before it.
  __device__ void flush(const Work& work, int layer, const Store& store, Bins& bins,
                        std::uint32_t& chain) {
    for (std::uint32_t begin = 0; begin < count; begin += block_threads) {
      const std::uint32_t i = begin + threadIdx.x;
      bins.add<Format>(work, i < count, i < count ? keys[i] : Key{0});
    }
    if constexpr (stores<Key>) {
      if (threadIdx.x == 0) reserve(work, layer, store, chain);
      __syncthreads();
      if (is_stored) {
        Key* to = store.keys_at<Key>(offset);
        std::uint16_t* to_places = store.places_at<Key>(offset, count);
        for (std::uint32_t i = threadIdx.x; i < count; i += block_threads) {
          to[i] = keys[i];
          to_places[i] = places[i];
        }
      }
    }
    __syncthreads();
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
  }

 private:
  // Takes memory in the store. A layer that gets none, or has had its share, is incomplete.
  __device__ void reserve(const Work& work, int layer, const Store& store, std::uint32_t& chain) {
    is_stored = false;
    if (count == 0) return;
    const auto share = static_cast<unsigned long long>(work.share);
    if (atomicAdd(&store.taken[layer], static_cast<unsigned long long>(count)) + count <= share) {
      const unsigned long long bytes = segment_bytes<Key>(count);
      offset = atomicAdd(store.used_bytes, bytes);
      const std::uint32_t segment = atomicAdd(store.used_segments, 1U);
      is_stored = offset + bytes <= store.bytes && segment < store.segment_limit;
      if (is_stored) {
        store.segments[segment] = {offset, count, chain};
        chain = segment;
      }
    }
    if (!is_stored) atomicExch(&store.incomplete[layer], 1U);
  }
};

// The interval, and what a thread has found on either side of it.
template <class Format>
struct TilePartition {
  using Key = typename Format::Storage;

  Key low;
  Key high;
  double scale;
  std::uint32_t not_below = 0;
  double above_sum = 0.0;

  // Loads this thread's share of a tile, and writes its mask.
  template <bool is_whole, class Access>
  __device__ Share<Key> take(const Access& access, int tile, bool writes_mask) {
    Share<Key> share;
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) {
      const int place = Access::place(tile, v);
      share.vectors[v] = is_whole ? access.load_whole(place) : access.load(place);
    }
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) {
      const int place = Access::place(tile, v);
      Bytes<Key>& sides = share.sides[v];
#pragma unroll
      for (int e = 0; e < vector_size<Key>; ++e) {
        const Key key = Format::key(share.vectors[v].at[e]);
        share.vectors[v].at[e] = key;
        const bool is_above = key >= high;
        sides.increase_if(key >= low, e);
        sides.increase_if(is_above, e);
        above_sum += scaled_square<Format>(is_above ? key : Key{0}, scale);
      }
      if (!is_whole) sides.keep_first(access.size() - place);
#pragma unroll
      for (const std::uint32_t word : sides.word) {
        not_below += static_cast<std::uint32_t>(__popc(word));
      }
      if (!writes_mask) continue;
      const Bytes<Key> kept = sides.all_with(above_byte);
      is_whole ? access.store_whole_mask(place, kept) : access.store_mask(place, kept);
    }
    return share;
  }
};

// How many blocks a multiprocessor must have registers for; 0 leaves it to the compiler. Where
// layers are not plain it would aim for more, and spill around the calls that find their elements;
// for sm_75, which has room for four, it would aim for two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ == 750
template <bool is_plain>
[[maybe_unused]] constexpr int resident = is_plain ? 3 : 2;
#else
template <bool is_plain>
[[maybe_unused]] constexpr int resident = is_plain ? 0 : 2;
#endif

template <class Format, bool is_plain>
__global__ __launch_bounds__(block_threads,
                             resident<is_plain>) void partition_span(const Work* __restrict__ works,
                                                                     int first_work, int work_count,
                                                                     bool writes_masks, Store store,
                                                                     Row* rows) {
  using Key = typename Format::Storage;
  __shared__ Staging<Format> staging;
  __shared__ Bins bins;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const int layer = result_index(works, work, first_work);
  const Span span = Span::of_block<Key>(work);
  const SpanAccess<Key, is_plain> access(work, span);
  TilePartition<Format> partition{static_cast<Key>(work.low), static_cast<Key>(work.high),
                                  work.scale};
  const bool writes_mask = stores<Key> && writes_masks && work.dense;
  std::uint32_t chain = no_segment;  // thread 0's
  if (threadIdx.x == 0) staging.count = 0;
  bins.begin();
  for (int tile = 0; tile < access.size(); tile += tile_size<Key>) {
    const std::uint32_t staged =
        access.is_whole_tile(tile)
            ? staging.add(partition.template take<true>(access, tile, writes_mask), tile)
            : staging.add(partition.template take<false>(access, tile, writes_mask), tile);
    const bool is_full = staged > static_cast<std::uint32_t>(staged_reserve<Key>);
    if (__syncthreads_or(is_full) != 0) staging.flush(work, layer, store, bins, chain);
  }
  __syncthreads();
  staging.flush(work, layer, store, bins, chain);
  if (threadIdx.x == 0) store.chains[span.number] = chain;
  const auto size = threadIdx.x == 0 ? static_cast<std::uint32_t>(access.size()) : 0U;
  bins.end(size - partition.not_below, partition.above_sum, rows[span.number]);  // all: modulo 2^32
}

template <class Format>
__global__ __launch_bounds__(block_threads) void partition_stored(const Work* __restrict__ works,
                                                                  int work_count, Store store,
                                                                  Row* rows) {
  using Key = typename Format::Storage;
  __shared__ Bins bins;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  std::uint32_t below = 0;
  double above_sum = 0.0;
  bins.begin();
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    for (std::uint32_t begin = 0; begin < segment.count; begin += block_threads) {
      const std::uint32_t i = begin + threadIdx.x;
      const bool is_there = i < segment.count;
      const Key key = is_there ? keys[i] : Key{0};
      if (is_there && key < work.low) ++below;
      if (is_there && key >= work.high) above_sum += scaled_square<Format>(key, work.scale);
      bins.add<Format>(work, is_there && key >= work.low && key < work.high, key);
    }
  }
  bins.end(below, above_sum, rows[span.number]);
}

__global__ __launch_bounds__(block_threads) void sum_part(const Work* __restrict__ works,
                                                          int work_count, std::int64_t item_size,
                                                          const Row* rows, Row* parts) {
  constexpr int groups = block_threads / Row::bins;
  __shared__ union {
    typename ReduceCount::TempStorage count;
    typename ReduceSum::TempStorage sum;
  } reduce;
  struct Bin {
    std::uint32_t count;
    std::uint32_t first;
    std::uint32_t last;
    double sum;

    __device__ void add(const Bin& other) {
      count += other.count;
      first = other.first < first ? other.first : first;
      last = other.last > last ? other.last : last;
      sum += other.sum;
    }
  };
  __shared__ Bin bins[groups][Row::bins];
  const std::int64_t number = works[0].first_part + blockIdx.x;
  const Work& work = owner(works, work_count, number, &Work::first_part);
  const std::int64_t all = spans_of(work.size, item_size);
  const std::int64_t begin = (number - work.first_part) * rows_in_part;
  const std::int64_t end = begin + rows_in_part < all ? begin + rows_in_part : all;
  const Row* from = rows + work.first_span;
  Row& part = parts[number];

  const std::int64_t own = begin + threadIdx.x;
  const bool has_own = own < end;
  const std::uint32_t below = ReduceCount(reduce.count).Sum(has_own ? from[own].below : 0U);
  __syncthreads();
  const std::uint32_t inside = ReduceCount(reduce.count).Sum(has_own ? from[own].inside : 0U);
  __syncthreads();
  const CompensatedSum above =
      ReduceSum(reduce.sum).Reduce(has_own ? from[own].above_sum : CompensatedSum{}, AddSums{});
  if (threadIdx.x == 0) {
    part.below = below;
    part.inside = inside;
    part.above_sum = above;
  }
  const int s = static_cast<int>(threadIdx.x) % Row::bins;
  const int group = static_cast<int>(threadIdx.x) / Row::bins;
  Bin bin{0, ~0U, 0, 0.0};
  for (std::int64_t r = begin + group; r < end; r += groups) {
    bin.add({from[r].counts[s], from[r].firsts[s], from[r].lasts[s], from[r].sums[s]});
  }
  bins[group][s] = bin;
  __syncthreads();
  if (group != 0) return;
  for (int other = 1; other < groups; ++other) bin.add(bins[other][s]);
  part.counts[s] = bin.count;
  part.firsts[s] = bin.first;
  part.lasts[s] = bin.last;
  part.sums[s] = bin.sum;
}

template <class Format>
__global__ __launch_bounds__(block_threads) void collect_span(const Work* __restrict__ works,
                                                              int first_work, int work_count,
                                                              Store store,
                                                              unsigned long long* found,
                                                              std::uint64_t* out) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  if (work.room == 0) return;
  const Span span = Span::of_block<Key>(work);
  unsigned long long& taken = found[result_index(works, work, first_work)];
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    for (std::uint32_t i = threadIdx.x; i < segment.count; i += block_threads) {
      const Key key = keys[i];
      if (key < work.low || key >= work.high) continue;
      const auto at = static_cast<std::int64_t>(atomicAdd(&taken, 1ULL));
      if (at < work.room) out[work.out + at] = key;
    }
  }
}

}  // namespace

void partition_weights(const Launch& with, bool writes_masks, const Store& store, Row* rows) {
  with_access(with, [&](auto format, auto is_plain) {
    launch("partition_weights", partition_span<decltype(format), is_plain.value>, with.blocks,
           with.stream, with.works, with.first, with.count, writes_masks, store, rows);
  });
}

void partition_candidates(const Launch& with, const Store& store, Row* rows) {
  with_stored_format(with.dtype, [&](auto format) {
    launch("partition_candidates", partition_stored<decltype(format)>, with.blocks, with.stream,
           with.works, with.count, store, rows);
  });
}

void sum_rows(const Launch& with, const Row* rows, Row* parts) {
  const std::int64_t item_size = lampfast::item_size(with.dtype);
  launch("sum_rows", sum_part, with.blocks, with.stream, with.works, with.count, item_size, rows,
         parts);
}

void collect_candidates(const Launch& with, const Store& store, unsigned long long* found,
                        std::uint64_t* keys) {
  with_stored_format(with.dtype, [&](auto format) {
    launch("collect_candidates", collect_span<decltype(format)>, with.blocks, with.stream,
           with.works, with.first, with.count, store, found, keys);
  });
}

}  // namespace lampfast::cuda
