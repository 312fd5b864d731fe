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

// Where this thread's v-th vector of a tile begins.
template <class Key>
__device__ std::int64_t vector_position(std::int64_t tile, int v) {
  return tile + (std::int64_t{v} * block_threads + threadIdx.x) * vector_size<Key>;
}

// How many elements a vector has before the end.
template <class Key>
__device__ int vector_count(std::int64_t position, std::int64_t end) {
  const std::int64_t left = end - position;
  return left <= 0 ? 0 : left < vector_size<Key> ? static_cast<int>(left) : vector_size<Key>;
}

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

template <class Key>
__device__ Vector<Key> load_vector(const Work& work, std::int64_t position, int count) {
  Vector<Key> vector{};
  if (work.aligned && count == vector_size<Key>) {
    const uint4 bits = *reinterpret_cast<const uint4*>(
        work.data + position * static_cast<std::int64_t>(sizeof(Key)));
    memcpy(&vector, &bits, sizeof(vector));
    return vector;
  }
#pragma unroll
  for (int e = 0; e < vector_size<Key>; ++e) {
    if (e < count) vector.at[e] = load<Key>(work, source_place(work, position + e));
  }
  return vector;
}

// Which of a vector's elements are kept.
template <class Key>
struct Kept {
  static constexpr int size = vector_size<Key>;

  bool at[size];

  __device__ void store(const Work& work, std::int64_t position, int count) const {
    auto* target = reinterpret_cast<std::uint8_t*>(work.target);
    if (work.aligned && count == size) {
      constexpr int word_bytes = size < 4 ? size : 4;
      using Word = std::conditional_t<word_bytes == 2, std::uint16_t, std::uint32_t>;
      auto* words = reinterpret_cast<Word*>(target + position);
#pragma unroll
      for (int w = 0; w < size / word_bytes; ++w) {
        std::uint32_t word = 0;
#pragma unroll
        for (int b = 0; b < word_bytes; ++b) {
          word |= static_cast<std::uint32_t>(at[w * word_bytes + b]) << (8 * b);
        }
        words[w] = static_cast<Word>(word);
      }
      return;
    }
#pragma unroll
    for (int e = 0; e < size; ++e) {
      if (e < count) target[target_place(work, position + e)] = at[e];
    }
  }
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
