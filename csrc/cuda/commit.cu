// Commit on a GPU: one streaming pass that zeroes the pruned weights or writes their masks, or a
// pass over the candidates that completes masks.
#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/kernels.h"

namespace lampfast::cuda {
namespace {

// Which elements of a span its layer's threshold prunes.
template <class Key, bool is_plain>
class PruneTest {
 public:
  __device__ PruneTest(const Work& work, const Span& span, std::int64_t first_kept)
      : work_(work),
        key_(static_cast<Key>(work.low)),
        begin_(span.begin),
        first_kept_(work.ties > 0 ? first_kept : 0),
        tie_end_(static_cast<int>(clamped(first_kept_ - span.begin, span.end - span.begin))) {}

  __device__ bool prunes(Key key, int place) const {
    if constexpr (is_plain) return key < key_ || (key == key_ && place < tie_end_);
    if (key != key_) return key < key_;
    return first_kept_ > 0 && index_of(work_, begin_ + place) < first_kept_;
  }

 private:
  __device__ static std::int64_t clamped(std::int64_t value, std::int64_t most) {
    return value < 0 ? 0 : value < most ? value : most;
  }

  const Work& work_;
  Key key_;
  std::int64_t begin_;
  std::int64_t first_kept_;
  int tie_end_;  // where the indices are the positions: the ties before this place are pruned
};

// Calls body(vector, place) for this thread's vectors of its block's span.
template <class Key, bool is_plain, class Body>
__device__ void for_each_vector(const SpanAccess<Key, is_plain>& span, Body&& body) {
  for (int tile = 0; tile < span.size(); tile += tile_size<Key>) {
    Vector<Key> vectors[vectors_in_flight];
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) vectors[v] = span.load(span.place(tile, v));
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) body(vectors[v], span.place(tile, v));
  }
}

template <class Format, bool is_plain>
__global__ __launch_bounds__(block_threads) void mask_span(const Work* __restrict__ works,
                                                           int first_work, int work_count,
                                                           const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const PruneTest<Key, is_plain> test(work, span,
                                      first_kept[result_index(works, work, first_work)]);
  const SpanAccess<Key, is_plain> access(work, span);
  for_each_vector(access, [&](const Vector<Key>& vector, int place) {
    Bytes<Key> kept;
#pragma unroll
    for (int e = 0; e < vector_size<Key>; ++e) {
      kept.increase_if(!test.prunes(Format::key(vector.at[e]), place + e), e);
    }
    access.store_mask(place, kept);
  });
}

template <class Target>
__device__ void zero_one(const Work& work, std::int64_t place) {
  reinterpret_cast<Target*>(work.target)[place] = 0;
}

// The target's elements may differ in size from the layer's: importances have a dtype of their own.
template <class Key, bool is_plain>
__device__ void zero_target(const Work& work, std::int64_t position) {
  if constexpr (is_plain) return zero_one<Key>(work, position);
  const std::int64_t place = target_place(work, position);
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
  const PruneTest<Key, is_plain> test(work, span,
                                      first_kept[result_index(works, work, first_work)]);
  const SpanAccess<Key, is_plain> access(work, span);
  for_each_vector(access, [&](Vector<Key> vector, int place) {
    const bool is_whole = access.is_whole(place) && (is_plain || work.own_target);
    bool is_changed = false;
#pragma unroll
    for (int e = 0; e < vector_size<Key>; ++e) {
      if (place + e >= access.size() || !test.prunes(Format::key(vector.at[e]), place + e)) {
        continue;
      }
      is_changed = true;
      vector.at[e] = 0;
      if (!is_whole) zero_target<Key, is_plain>(work, span.begin + place + e);
    }
    if (is_whole && is_changed) access.store(place, vector);
  });
}

template <class Format>
__global__ __launch_bounds__(block_threads) void settle_span(const Work* __restrict__ works,
                                                             int first_work, int work_count,
                                                             Store store,
                                                             const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const PruneTest<Key, false> test(work, span, first_kept[result_index(works, work, first_work)]);
  auto* target = reinterpret_cast<bool*>(work.target) + span.begin;
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    const std::uint16_t* places = store.places_at<Key>(segment.offset, segment.count);
    for (std::uint32_t i = threadIdx.x; i < segment.count; i += block_threads) {
      target[places[i]] = !test.prunes(keys[i], places[i]);
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
