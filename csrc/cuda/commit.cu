// Commit on a GPU: one streaming pass that zeroes the pruned weights or writes their masks, or a
// pass over the candidates that completes masks.
#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

// Which elements of a layer its threshold prunes.
template <class Key>
class PruneTest {
 public:
  __device__ PruneTest(const Work& work, std::int64_t first_kept)
      : work_(work),
        key_(static_cast<Key>(work.low)),
        first_kept_(work.ties > 0 ? first_kept : 0) {}

  __device__ bool prunes(Key key, std::int64_t position) const {
    if (key != key_) return key < key_;
    return first_kept_ > 0 && index_of(work_, position) < first_kept_;
  }

 private:
  const Work& work_;
  Key key_;
  std::int64_t first_kept_;
};

// The same for a span of a plain launch, in which indices are positions.
template <class Key>
class PlainPruneTest {
 public:
  __device__ PlainPruneTest(const Work& work, const Span& span, std::int64_t first_kept)
      : key_(static_cast<Key>(work.low)), tie_end_(0) {
    const std::int64_t size = span.end - span.begin;
    const std::int64_t end = work.ties > 0 ? first_kept - span.begin : 0;
    tie_end_ = static_cast<int>(end < 0 ? 0 : end < size ? end : size);
  }

  __device__ bool prunes(Key key, int place) const {
    const Key end = place < tie_end_ ? key_ + 1 : key_;  // of the keys that are pruned there
    return key < end;
  }

 private:
  Key key_;
  int tie_end_;  // the place before which ties are pruned
};

// Calls body(vector, place, is_whole) for this thread's vectors of its block's span; is_whole is a
// constant, true where all vectors of the tile are.
template <class Key, class Body>
__device__ void for_each_vector(const SpanAccess<Key, true>& access, Body&& body) {
  const auto visit = [&](int tile, auto is_whole) {
    Vector<Key> vectors[vectors_in_flight];
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) {
      const int place = access.place(tile, v);
      vectors[v] = is_whole.value ? access.load_whole(place) : access.load(place);
    }
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) body(vectors[v], access.place(tile, v), is_whole);
  };
  for (int tile = 0; tile < access.size(); tile += tile_size<Key>) {
    access.is_whole_tile(tile) ? visit(tile, std::true_type{}) : visit(tile, std::false_type{});
  }
}

// Calls body(key, position) for this thread's elements of its block's span.
template <class Format, class Body>
__device__ void for_each_position(const Work& work, const Span& span, Body&& body) {
  using Key = typename Format::Storage;
  constexpr int in_flight = 4;
  for (std::int64_t begin = span.begin + threadIdx.x; begin < span.end;
       begin += block_threads * in_flight) {
    Key keys[in_flight];
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      const std::int64_t position = begin + j * block_threads;
      keys[j] = position < span.end ? load<Key>(work, source_place(work, position)) : Key{0};
    }
#pragma unroll
    for (int j = 0; j < in_flight; ++j) {
      const std::int64_t position = begin + j * block_threads;
      if (position < span.end) body(Format::key(keys[j]), position);
    }
  }
}

template <class Format, bool is_plain>
__global__ __launch_bounds__(block_threads) void mask_span(const Work* __restrict__ works,
                                                           int first_work, int work_count,
                                                           const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const std::int64_t first = first_kept[result_index(works, work, first_work)];
  if constexpr (is_plain) {
    const PlainPruneTest<Key> test(work, span, first);
    const SpanAccess<Key, true> access(work, span);
    for_each_vector(access, [&](const Vector<Key>& vector, int place, auto is_whole) {
      Bytes<Key> kept;
#pragma unroll
      for (int e = 0; e < vector_size<Key>; ++e) {
        kept.increase_if(!test.prunes(Format::key(vector.at[e]), place + e), e);
      }
      is_whole.value ? access.store_whole_mask(place, kept) : access.store_mask(place, kept);
    });
  } else {
    const PruneTest<Key> test(work, first);
    for_each_position<Format>(work, span, [&](Key key, std::int64_t position) {
      reinterpret_cast<bool*>(work.target)[target_place(work, position)] =
          !test.prunes(key, position);
    });
  }
}

template <class Target>
__device__ void zero_one(const Work& work, std::int64_t place) {
  reinterpret_cast<Target*>(work.target)[place] = 0;
}

// The target's elements may differ in size from the layer's: importances have a dtype of their own.
__device__ void zero_target(const Work& work, std::int64_t place) {
  switch (work.target_size) {
    case 1:
      return zero_one<std::uint8_t>(work, place);
    case 2:
      return zero_one<std::uint16_t>(work, place);
    case 4:
      return zero_one<std::uint32_t>(work, place);
    default:
      return zero_one<std::uint64_t>(work, place);
  }
}

template <class Format, bool is_plain>
__global__ __launch_bounds__(block_threads) void zero_span(const Work* __restrict__ works,
                                                           int first_work, int work_count,
                                                           const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const std::int64_t first = first_kept[result_index(works, work, first_work)];
  if constexpr (is_plain) {
    const PlainPruneTest<Key> test(work, span, first);
    const SpanAccess<Key, true> access(work, span);
    for_each_vector(access, [&](Vector<Key> vector, int place, auto is_known_whole) {
      const bool is_whole = is_known_whole.value || access.is_whole(place);
      bool is_changed = false;
#pragma unroll
      for (int e = 0; e < vector_size<Key>; ++e) {
        const bool is_there = is_known_whole.value || place + e < access.size();
        if (!is_there || !test.prunes(Format::key(vector.at[e]), place + e)) continue;
        is_changed = true;
        vector.at[e] = 0;
        if (!is_whole) zero_one<Key>(work, span.begin + place + e);
      }
      if (is_whole && is_changed) access.store(place, vector);
    });
  } else {
    const PruneTest<Key> test(work, first);
    for_each_position<Format>(work, span, [&](Key key, std::int64_t position) {
      if (test.prunes(key, position)) zero_target(work, target_place(work, position));
    });
  }
}

template <class Format>
__global__ __launch_bounds__(block_threads) void settle_span(const Work* __restrict__ works,
                                                             int first_work, int work_count,
                                                             Store store,
                                                             const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const PruneTest<Key> test(work, first_kept[result_index(works, work, first_work)]);
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    const std::uint16_t* places = store.places_at<Key>(segment.offset, segment.count);
    for (std::uint32_t i = threadIdx.x; i < segment.count; i += block_threads) {
      const std::int64_t position = span.begin + places[i];
      reinterpret_cast<bool*>(work.target)[position] = !test.prunes(keys[i], position);
    }
  }
}

}  // namespace

void zero(const Launch& with, const std::int64_t* first_kept) {
  with_access(with, [&](auto format, auto is_plain) {
    launch("zero", zero_span<decltype(format), is_plain.value>, with.blocks, with.stream,
           with.works, with.first, with.count, first_kept);
  });
}

void mask(const Launch& with, const std::int64_t* first_kept) {
  with_access(with, [&](auto format, auto is_plain) {
    launch("mask", mask_span<decltype(format), is_plain.value>, with.blocks, with.stream,
           with.works, with.first, with.count, first_kept);
  });
}

void settle_masks(const Launch& with, const Store& store, const std::int64_t* first_kept) {
  with_stored_format(with.dtype, [&](auto format) {
    launch("settle_masks", settle_span<decltype(format)>, with.blocks, with.stream, with.works,
           with.first, with.count, store, first_kept);
  });
}

void load_commit(const Launch& with) {
  with_access(with, [](auto format, auto is_plain) {
    using Format = decltype(format);
    load("zero", zero_span<Format, is_plain.value>);
    load("mask", mask_span<Format, is_plain.value>);
    if constexpr (stores<typename Format::Storage>) load("settle_masks", settle_span<Format>);
  });
}

}  // namespace lampfast::cuda
