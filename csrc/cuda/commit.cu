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
      : work_(work), key_(static_cast<Key>(work.low)), first_kept_(first_kept) {}

  __device__ bool prunes(Key key, std::int64_t position) const {
    if (key != key_) return key < key_;
    return work_.ties > 0 && index_of(work_, position) < first_kept_;
  }

 private:
  const Work& work_;
  Key key_;
  std::int64_t first_kept_;
};

// Calls body(vector, position, count) for this thread's vectors of its block's span.
template <class Key, class Body>
__device__ void for_each_vector(const Work& work, const Span& span, Body&& body) {
  for (std::int64_t tile = span.begin; tile < span.end; tile += tile_size<Key>) {
    Vector<Key> vectors[vectors_in_flight];
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) {
      const std::int64_t position = vector_position<Key>(tile, v);
      vectors[v] = load_vector<Key>(work, position, vector_count<Key>(position, span.end));
    }
#pragma unroll
    for (int v = 0; v < vectors_in_flight; ++v) {
      const std::int64_t position = vector_position<Key>(tile, v);
      body(vectors[v], position, vector_count<Key>(position, span.end));
    }
  }
}

template <class Format>
__global__ __launch_bounds__(block_threads) void mask_span(const Work* __restrict__ works,
                                                           int first_work, int work_count,
                                                           const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const PruneTest<Key> test(work, first_kept[result_index(works, work, first_work)]);
  for_each_vector<Key>(work, Span::of_block<Key>(work),
                       [&](const Vector<Key>& vector, std::int64_t position, int count) {
                         Kept<Key> kept{};
#pragma unroll
                         for (int e = 0; e < vector_size<Key>; ++e) {
                           kept.at[e] = !test.prunes(Format::key(vector.at[e]), position + e);
                         }
                         kept.store(work, position, count);
                       });
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

template <class Format>
__global__ __launch_bounds__(block_threads) void zero_span(const Work* __restrict__ works,
                                                           int first_work, int work_count,
                                                           const std::int64_t* first_kept) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const PruneTest<Key> test(work, first_kept[result_index(works, work, first_work)]);
  const auto zero_vector = [&](Vector<Key> vector, std::int64_t position, int count) {
    bool is_whole = work.own_target && work.aligned && count == vector_size<Key>;
    bool is_changed = false;
#pragma unroll
    for (int e = 0; e < vector_size<Key>; ++e) {
      if (e >= count || !test.prunes(Format::key(vector.at[e]), position + e)) continue;
      is_changed = true;
      vector.at[e] = 0;
      if (is_whole) continue;
      zero_target(work, target_place(work, position + e));
    }
    if (!is_whole || !is_changed) return;
    uint4 bits;
    memcpy(&bits, &vector, sizeof(bits));
    *reinterpret_cast<uint4*>(work.target + position * static_cast<std::int64_t>(sizeof(Key))) =
        bits;
  };
  for_each_vector<Key>(work, Span::of_block<Key>(work), zero_vector);
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
  auto* target = reinterpret_cast<bool*>(work.target) + span.begin;
  for (std::uint32_t s = store.chains[span.number]; s != no_segment; s = store.segments[s].next) {
    const Segment segment = store.segments[s];
    const Key* keys = store.keys_at<Key>(segment.offset);
    const std::uint16_t* places = store.places_at<Key>(segment.offset, segment.count);
    for (std::uint32_t i = threadIdx.x; i < segment.count; i += block_threads) {
      target[places[i]] = !test.prunes(keys[i], span.begin + places[i]);
    }
  }
}

}  // namespace

void zero(const Launch& with, const std::int64_t* first_kept) {
  with_format(with.dtype, [&](auto format) {
    launch("zero", zero_span<decltype(format)>, with.blocks, with.stream, with.works, with.first,
           with.count, first_kept);
  });
}

void mask(const Launch& with, const std::int64_t* first_kept) {
  with_format(with.dtype, [&](auto format) {
    launch("mask", mask_span<decltype(format)>, with.blocks, with.stream, with.works, with.first,
           with.count, first_kept);
  });
}

void settle_masks(const Launch& with, const Store& store, const std::int64_t* first_kept) {
  with_stored_format(with.dtype, [&](auto format) {
    launch("settle_masks", settle_span<decltype(format)>, with.blocks, with.stream, with.works,
           with.first, with.count, store, first_kept);
  });
}

void load_commit(Dtype dtype) {
  with_format(dtype, [](auto format) {
    using Format = decltype(format);
    load("zero", zero_span<Format>);
    load("mask", mask_span<Format>);
    if constexpr (stores<typename Format::Storage>) load("settle_masks", settle_span<Format>);
  });
}

}  // namespace lampfast::cuda
