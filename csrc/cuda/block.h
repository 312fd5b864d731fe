// What the kernels have in common: which span a block has, and how its threads read it.
#pragma once

#include <cstring>
#include <type_traits>

#include "cuda/work.h"

namespace lampfast::cuda {

// The work that a block (or a part, by `first`) belongs to: the last one that begins at or before
// it. `Any` is Work or a smaller struct with such a member.
template <class Any>
__device__ const Any& owner(const Any* works, int count, std::int64_t block,
                            std::int64_t Any::* first) {
  int low = 0;
  for (int high = count; high - low > 1;) {
    const int middle = (low + high) / 2;
    (works[middle].*first <= block ? low : high) = middle;
  }
  return works[low];
}

// The index by which results that belong to one layer are found: that of its work among all works
// that were sent, of which works[0] is the first_work-th (Launch::first).
__device__ inline int result_index(const Work* works, const Work& work, int first_work) {
  return first_work + static_cast<int>(&work - works);
}

// The positions [begin, end) of a span of a layer, and its number among all spans.
struct Span {
  std::int64_t begin;
  std::int64_t end;
  std::int64_t number;

  template <class Key>
  __device__ static Span of(const Work& work, std::int64_t in_layer) {
    constexpr std::int64_t size = span_bytes / static_cast<std::int64_t>(sizeof(Key));
    const std::int64_t begin = in_layer * size;
    const std::int64_t end = begin + size < work.size ? begin + size : work.size;
    return {begin, end, work.first_span + in_layer};
  }

  template <class Key>
  __device__ static Span of_block(const Work& work) {
    return of<Key>(work, std::int64_t{blockIdx.x} - work.first_block);
  }
};

template <class Key>
struct alignas(vector_bytes) Vector {
  Key at[vector_size<Key>];
};

template <class Key>
__device__ Key load(const Work& work, std::int64_t place) {
  return reinterpret_cast<const Key*>(work.data)[place];
}

// Offsets and row-major index of the element at a position. Not inlined, so that code which is
// rarely needed does not fill the kernels.
__device__ __attribute__((noinline)) inline std::int64_t source_place(const Work& work,
                                                                      std::int64_t position) {
  return work.dense ? position : work.by_memory.at(position).source;
}
__device__ __attribute__((noinline)) inline std::int64_t target_place(const Work& work,
                                                                      std::int64_t position) {
  return work.dense ? position : work.by_memory.at(position).target;
}
__device__ __attribute__((noinline)) inline std::int64_t index_of(const Work& work,
                                                                  std::int64_t position) {
  return work.by_memory.at(position).index;
}

// A byte for each element of a vector, four of them in a word.
template <class Key>
struct Bytes {
  static constexpr int words = (vector_size<Key> + 3) / 4;

  std::uint32_t word[words] = {};

  __device__ void increase_if(bool does, int e) {
    if (does) word[e / 4] += 1U << (e % 4 * 8);
  }
  __device__ bool is_set(int e) const { return (word[e / 4] >> (e % 4 * 8) & 1) != 0; }
  // Bytes of 0 or 1: whether each of these has a bit.
  __device__ Bytes all_with(std::uint32_t bit) const {
    Bytes with;
#pragma unroll
    for (int w = 0; w < words; ++w) with.word[w] = word[w] / bit & 0x01010101;
    return with;
  }
  // Clears the bytes of all elements but the first `count`.
  __device__ void keep_first(int count) {
#pragma unroll
    for (int w = 0; w < words; ++w) {
      const int left = count - w * 4;
      if (left < 4) word[w] &= left <= 0 ? 0U : (1U << (left * 8)) - 1;
    }
  }
};

// A block's span, read and written a vector at a time. Places count from the span's begin. The
// layers of a plain launch (Launch::is_plain) lie in memory as vectors read them; others may have
// any order and alignment, which takes more than twice the registers.
template <class Key, bool is_plain>
class SpanAccess {
 public:
  __device__ SpanAccess(const Work& work, const Span& span)
      : work_(work),
        begin_(span.begin),
        size_(static_cast<int>(span.end - span.begin)),
        data_(reinterpret_cast<Key*>(const_cast<std::byte*>(work.data)) + span.begin),
        mask_(reinterpret_cast<std::uint8_t*>(work.target) + span.begin) {}

  __device__ int size() const { return size_; }

  // Where this thread's v-th vector of a tile begins.
  __device__ static int place(int tile, int v) {
    return tile + (v * block_threads + static_cast<int>(threadIdx.x)) * vector_size<Key>;
  }

  __device__ Vector<Key> load_whole(int place) const {
    const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(data_ + place));
    Vector<Key> loaded;
    memcpy(&loaded, &bits, sizeof(loaded));
    return loaded;
  }
  // Zeroes stand for elements behind the span's end.
  __device__ Vector<Key> load(int place) const {
    if (is_whole(place)) return load_whole(place);
    Vector<Key> loaded{};
#pragma unroll
    for (int e = 0; e < vector_size<Key>; ++e) {
      if (place + e >= size_) continue;
      if constexpr (is_plain) {
        loaded.at[e] = data_[place + e];
      } else {
        loaded.at[e] = cuda::load<Key>(work_, source_place(work_, begin_ + place + e));
      }
    }
    return loaded;
  }

  // Writes every element's byte, which is 0 or 1, to the mask.
  __device__ void store_whole_mask(int place, const Bytes<Key>& kept) const {
    constexpr int word_bytes = vector_size<Key> < 4 ? vector_size<Key> : 4;
    using Word = std::conditional_t<word_bytes == 2, std::uint16_t, std::uint32_t>;
    auto* words = reinterpret_cast<Word*>(mask_ + place);
#pragma unroll
    for (int w = 0; w < Bytes<Key>::words; ++w) __stcs(words + w, static_cast<Word>(kept.word[w]));
  }
  __device__ void store_mask(int place, const Bytes<Key>& kept) const {
    if (is_whole(place)) return store_whole_mask(place, kept);
#pragma unroll
    for (int e = 0; e < vector_size<Key>; ++e) {
      if (place + e >= size_) continue;
      if constexpr (is_plain) {
        mask_[place + e] = kept.is_set(e);
      } else {
        reinterpret_cast<bool*>(work_.target)[target_place(work_, begin_ + place + e)] =
            kept.is_set(e);
      }
    }
  }

  // Whether all of a vector, or of every thread's vectors of a tile, can be loaded and stored at
  // once, in the layer and in its mask.
  __device__ bool is_whole(int place) const {
    return place + vector_size<Key> <= size_ && (is_plain || work_.aligned);
  }
  __device__ bool is_whole_tile(int tile) const {
    return tile + tile_size<Key> <= size_ && (is_plain || work_.aligned);
  }
  // Stores a whole vector to the layer.
  __device__ void store(int place, const Vector<Key>& vector) const {
    uint4 bits;
    memcpy(&bits, &vector, sizeof(bits));
    __stcs(reinterpret_cast<uint4*>(data_ + place), bits);
  }

 private:
  const Work& work_;
  std::int64_t begin_;
  int size_;
  Key* data_;           // of no use where layers are not dense
  std::uint8_t* mask_;  // nor is this
};

// Deals the elements of a span to the threads of the block, each of which calls body(key, offsets)
// for its own.
template <class Format, class Body>
__device__ void for_each_element(const Work& work, const Span& span, const VisitOrder& order,
                                 Body&& body) {
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += block_threads) {
    const ElementOffsets offsets = order.at(i);
    body(Format::key(load<typename Format::Storage>(work, offsets.source)), offsets);
  }
}

}  // namespace lampfast::cuda
