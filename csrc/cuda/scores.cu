// LAMP scores on a GPU: a radix sort by magnitude, suffix sums by span, and a scatter of the
// ratios.
#include <cub/device/device_radix_sort.cuh>
#include <limits>
#include <type_traits>
#include <utility>

#include "core/compensated_sum.h"
#include "core/float64_score.h"
#include "core/key_format.h"
#include "cuda/block.h"
#include "cuda/scores.h"
#include "cuda/workspace.h"

namespace lampfast::cuda {
namespace {

// The most elements that several layers sorted together have.
constexpr std::int64_t batch_size = test_sizes ? 100 : 1 << 22;

template <class Format>
constexpr int key_bits = 8 * static_cast<int>(sizeof(typename Format::Storage)) - 1;

int bits_of(std::size_t values) {
  int bits = 0;
  while ((values - 1) >> bits != 0) ++bits;
  return bits;
}

// Computes in doubles (the sums compensated), whose errors are far below those of a float32 score.
template <class Format>
struct Plain {
  using Score = float;
  using Total = CompensatedSum;
  using Key = typename Format::Storage;

  __device__ explicit Plain(Key) {}
  __device__ void add(Total& total, Key key) const { total.add(scaled_square<Format>(key, 1.0)); }
  __device__ float add_and_score(Total& total, Key key) const {
    if (key == 0) return 0.0F;
    add(total, key);
    return static_cast<float>(scaled_square<Format>(key, 1.0) / total.value());
  }
};

template <class Format>
using Arithmetic =
    std::conditional_t<sizeof(typename Format::Storage) == 8, Float64Score, Plain<Format>>;

// The memory of a batch. A Word is a key, with the number of its layer in the bits above it.
template <class Word>
struct Room {
  static constexpr std::int64_t most_total_bytes = 16;

  Word* words[2];
  Word* places[2];    // row-major indices, counted from Work::out on
  std::byte* totals;  // by span: its total, then that of all later spans of its layer
  std::byte* sort_memory;
  std::size_t sort_bytes = 0;
  std::int64_t bytes;

  Room(const Batch& batch, std::byte* memory) {
    Arena arena(memory);
    for (Word*& part : words) part = arena.take<Word>(batch.size);
    for (Word*& part : places) part = arena.take<Word>(batch.size);
    totals = arena.take<std::byte>(batch.spans * most_total_bytes);
    sort(batch, nullptr, 0, nullptr);
    sort_memory = arena.take<std::byte>(static_cast<std::int64_t>(sort_bytes));
    bytes = arena.used();
  }

  // Sorts the words together with their places, and leaves them in words[0] and places[0]. With
  // null memory it only finds out how much the sort needs.
  void sort(const Batch& batch, std::byte* temporary, int bits, cudaStream_t stream) {
    cub::DoubleBuffer<Word> keys(words[0], words[1]);
    cub::DoubleBuffer<Word> values(places[0], places[1]);
    check(cub::DeviceRadixSort::SortPairs(temporary, sort_bytes, keys, values, batch.size, 0,
                                          bits == 0 ? 8 * static_cast<int>(sizeof(Word)) : bits,
                                          stream),
          "cub::DeviceRadixSort::SortPairs");
    if (temporary == nullptr) return;
    if (keys.Current() != words[0]) std::swap(words[0], words[1]);
    if (values.Current() != places[0]) std::swap(places[0], places[1]);
  }
};

template <class Format, class Word>
__global__ __launch_bounds__(block_threads) void fill_span(const Work* __restrict__ works,
                                                           int work_count, Word* words,
                                                           Word* places,
                                                           std::uint32_t* not_finite) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const auto number = static_cast<Word>(&work - works);
  const Span span = Span::of_block<Key>(work);
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += block_threads) {
    Key key = Format::key(load<Key>(work, work.by_index.at(i).source));
    if (key >= Format::not_finite) {
      atomicExch(not_finite, 1U);
      key = Format::not_finite - 1;  // its score does not matter, but sums must stay numbers
    }
    Word word = key;
    if constexpr (sizeof(Word) > sizeof(Key)) word |= number << key_bits<Format>;
    words[work.out + i] = word;
    places[work.out + i] = static_cast<Word>(i);
  }
}

// A block's span of its layer's sorted keys, and this thread's stretch of it.
template <class Format, class Word>
struct Sorted {
  using Key = typename Format::Storage;

  const Word* words;  // of the layer
  std::int64_t size;
  std::int64_t begin;
  std::int64_t end;

  __device__ Sorted(const Work& work, const Span& span, const Word* all)
      : words(all + work.out), size(work.size) {
    const std::int64_t each = (span.end - span.begin + block_threads - 1) / block_threads;
    begin = span.begin + each * threadIdx.x;
    begin = begin < span.end ? begin : span.end;
    end = begin + each < span.end ? begin + each : span.end;
  }

  __device__ Key key(std::int64_t i) const {
    return static_cast<Key>(words[i] & static_cast<Word>(Format::magnitude_mask));
  }
  __device__ Arithmetic<Format> arithmetic() const { return Arithmetic<Format>(key(size - 1)); }
};

template <class Format, class Word>
__global__ __launch_bounds__(block_threads) void add_span(
    const Work* __restrict__ works, int work_count, const Word* words,
    typename Arithmetic<Format>::Total* totals) {
  using Key = typename Format::Storage;
  using Total = typename Arithmetic<Format>::Total;
  alignas(16) __shared__ unsigned char memory[block_threads * sizeof(Total)];
  auto* parts = reinterpret_cast<Total*>(memory);
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const Sorted<Format, Word> sorted(work, span, words);
  const Arithmetic<Format> arithmetic = sorted.arithmetic();
  Total total{};
  for (std::int64_t i = sorted.begin; i < sorted.end; ++i) arithmetic.add(total, sorted.key(i));
  parts[threadIdx.x] = total;
  for (int half = block_threads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < half) {
      parts[threadIdx.x].add(parts[threadIdx.x + static_cast<unsigned>(half)]);
    }
  }
  if (threadIdx.x == 0) totals[span.number] = parts[0];
}

// Replaces each span's total by that of all later spans of the layer; one layer per block.
template <class Total>
__global__ __launch_bounds__(block_threads) void add_later_spans(const Work* __restrict__ works,
                                                                 std::int64_t item_size,
                                                                 Total* totals) {
  alignas(16) __shared__ unsigned char memory[block_threads * sizeof(Total)];
  auto* parts = reinterpret_cast<Total*>(memory);
  const Work& work = works[blockIdx.x];
  Total* own = totals + work.first_span;
  Total later{};  // thread 0's
  for (std::int64_t end = spans_of(work.size, item_size); end > 0; end -= block_threads) {
    const std::int64_t at = end - 1 - threadIdx.x;
    if (at >= 0) parts[threadIdx.x] = own[at];
    __syncthreads();
    for (int j = 0; threadIdx.x == 0 && j < block_threads && j < end; ++j) {
      const Total total = parts[j];
      parts[j] = later;
      later.add(total);
    }
    __syncthreads();
    if (at >= 0) own[at] = parts[threadIdx.x];
    __syncthreads();
  }
}

template <class Format, class Word>
__global__ __launch_bounds__(block_threads) void score_span(
    const Work* __restrict__ works, int work_count, const Word* words, const Word* places,
    const typename Arithmetic<Format>::Total* later) {
  using Key = typename Format::Storage;
  using Total = typename Arithmetic<Format>::Total;
  alignas(16) __shared__ unsigned char memory[block_threads * sizeof(Total)];
  auto* parts = reinterpret_cast<Total*>(memory);
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const Sorted<Format, Word> sorted(work, span, words);
  const Arithmetic<Format> arithmetic = sorted.arithmetic();
  Total own{};
  for (std::int64_t i = sorted.begin; i < sorted.end; ++i) arithmetic.add(own, sorted.key(i));
  parts[threadIdx.x] = own;
  __syncthreads();
  Total total = later[span.number];
  for (int j = block_threads - 1; j > static_cast<int>(threadIdx.x); --j) total.add(parts[j]);
  auto* target = reinterpret_cast<typename Arithmetic<Format>::Score*>(work.target);
  for (std::int64_t i = sorted.end; i-- > sorted.begin;) {
    target[places[work.out + i]] = arithmetic.add_and_score(total, sorted.key(i));
  }
}

template <class Format, class Word>
void score_words(const Batch& batch, const Work* works, std::byte* memory,
                 std::uint32_t* not_finite, cudaStream_t stream) {
  using Total = typename Arithmetic<Format>::Total;
  static_assert(sizeof(Total) <= Room<Word>::most_total_bytes);
  Room<Word> room(batch, memory);
  const auto count = static_cast<int>(batch.layers.size());
  launch("fill", fill_span<Format, Word>, batch.spans, stream, works, count, room.words[0],
         room.places[0], not_finite);
  room.sort(batch, room.sort_memory, key_bits<Format> + bits_of(batch.layers.size()), stream);
  auto* totals = reinterpret_cast<Total*>(room.totals);
  launch("add", add_span<Format, Word>, batch.spans, stream, works, count, room.words[0], totals);
  constexpr std::int64_t item_size = sizeof(typename Format::Storage);
  launch("add_later", add_later_spans<Total>, std::int64_t{count}, stream, works, item_size,
         totals);
  launch("score", score_span<Format, Word>, batch.spans, stream, works, count, room.words[0],
         room.places[0], totals);
}

}  // namespace

bool Batch::is_narrow() const {
  return layers.size() == 1 && dtype == Dtype::float32 &&
         size <= std::numeric_limits<std::uint32_t>::max();
}

std::vector<Batch> batches(const std::vector<Layer>& layers, const LayerIds& ids) {
  std::vector<Batch> result;
  for (const std::size_t i : ids) {
    const Layer& layer = layers[i];
    if (layer.size == 0) continue;
    // The 63 bits of a float64's key leave none for the number of a layer.
    const bool joins = !result.empty() && result.back().dtype == layer.dtype &&
                       layer.dtype != Dtype::float64 &&
                       result.back().size + layer.size <= batch_size;
    if (!joins) result.push_back({layer.dtype, {}, 0, 0});
    Batch& batch = result.back();
    batch.layers.push_back(i);
    batch.size += layer.size;
    batch.spans += spans_of(layer);
  }
  return result;
}

std::int64_t score_bytes(const Batch& batch) {
  return batch.is_narrow() ? Room<std::uint32_t>(batch, nullptr).bytes
                           : Room<std::uint64_t>(batch, nullptr).bytes;
}

void score_batch(const Batch& batch, const Work* works, std::byte* memory,
                 std::uint32_t* not_finite, cudaStream_t stream) {
  if (batch.is_narrow()) {
    score_words<Float32, std::uint32_t>(batch, works, memory, not_finite, stream);
    return;
  }
  with_format(batch.dtype, [&](auto format) {
    score_words<decltype(format), std::uint64_t>(batch, works, memory, not_finite, stream);
  });
}

}  // namespace lampfast::cuda
