// LAMP scores on a GPU: a radix sort by magnitude, suffix sums by span, and a scatter of the
// ratios.
#include <algorithm>
#include <cub/device/device_radix_sort.cuh>
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

// Layers are sorted together until they have this share of all elements, or so many.
constexpr std::int64_t batch_share = 16;
constexpr std::int64_t least_batch_size = test_sizes ? 100 : 1 << 22;

template <class Format>
constexpr int key_bits = 8 * static_cast<int>(sizeof(typename Format::Storage)) - 1;

int key_bits_of(Dtype dtype) { return static_cast<int>(item_size(dtype)) * 8 - 1; }

// How many bits tell so many values apart.
int bits_of(std::int64_t values) {
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

using Word = unsigned long long;

// The elements of a batch, to be sorted. A word has, from the highest bits down, the number of a
// layer, a key, and the key's row-major index: so a key carries its place along. float64 leaves no
// room in a word; its layers are sorted alone, and the indices lie beside the words.
template <class Format>
struct Elements {
  using Key = typename Format::Storage;
  static constexpr bool has_places = sizeof(Key) == 8;

  Word* words;
  Word* places;
  int index_bits;

  __device__ void set(std::int64_t at, Word number, Key key, std::int64_t index) const {
    if constexpr (has_places) {
      words[at] = key;
      places[at] = static_cast<Word>(index);
    } else {
      words[at] = (number << key_bits<Format> | key) << index_bits | static_cast<Word>(index);
    }
  }
  __device__ Key key(Word word) const {
    return static_cast<Key>(has_places ? word : word >> index_bits & Format::magnitude_mask);
  }
  __device__ std::int64_t index(std::int64_t at, Word word) const {
    if constexpr (has_places) return static_cast<std::int64_t>(places[at]);
    return static_cast<std::int64_t>(word & ((Word{1} << index_bits) - 1));
  }
};

// The memory of a batch.
struct Room {
  static constexpr std::int64_t most_total_bytes = 16;

  Word* words[2];
  Word* places[2];
  std::byte* totals;  // by span: its total, then that of all later spans of its layer
  std::byte* sort_memory;
  std::size_t sort_bytes = 0;
  std::int64_t bytes;

  Room(const Batch& batch, std::byte* memory) {
    Arena arena(memory);
    const bool has_places = batch.dtype == Dtype::float64;
    for (Word*& part : words) part = arena.take<Word>(batch.size);
    for (Word*& part : places) part = arena.take<Word>(has_places ? batch.size : 0);
    totals = arena.take<std::byte>(batch.spans * most_total_bytes);
    sort(batch, nullptr, nullptr);
    sort_memory = arena.take<std::byte>(static_cast<std::int64_t>(sort_bytes));
    bytes = arena.used();
  }

  // Sorts the words by layer and key, with their places if they have any, and leaves them in
  // words[0] and places[0]. With null memory it only finds out how much the sort needs.
  void sort(const Batch& batch, std::byte* temporary, cudaStream_t stream) {
    const auto count = static_cast<std::int64_t>(batch.layers.size());
    const int end_bit = batch.index_bits + key_bits_of(batch.dtype) + bits_of(count);
    cub::DoubleBuffer<Word> keys(words[0], words[1]);
    cub::DoubleBuffer<Word> values(places[0], places[1]);
    check(batch.dtype == Dtype::float64
              ? cub::DeviceRadixSort::SortPairs(temporary, sort_bytes, keys, values, batch.size, 0,
                                                end_bit, stream)
              : cub::DeviceRadixSort::SortKeys(temporary, sort_bytes, keys, batch.size,
                                               batch.index_bits, end_bit, stream),
          "cub::DeviceRadixSort");
    if (temporary == nullptr) return;
    if (keys.Current() != words[0]) std::swap(words[0], words[1]);
    if (values.Current() != places[0]) std::swap(places[0], places[1]);
  }
};

template <class Format>
__global__ __launch_bounds__(block_threads) void fill_span(const Work* __restrict__ works,
                                                           int work_count,
                                                           const Elements<Format> elements,
                                                           std::uint32_t* not_finite) {
  using Key = typename Format::Storage;
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const auto number = static_cast<Word>(&work - works);
  const Span span = Span::of_block<Key>(work);
  const VisitOrder order = work.by_index;
  const std::int64_t out = work.out;
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += block_threads) {
    Key key = Format::key(load<Key>(work, order.at(i).source));
    if (key >= Format::not_finite) {
      atomicExch(not_finite, 1U);
      key = Format::not_finite - 1;  // its score does not matter, but sums must stay numbers
    }
    elements.set(out + i, number, key, i);
  }
}

// The arithmetic for a layer whose elements are sorted.
template <class Format>
__device__ Arithmetic<Format> arithmetic_of(const Work& work, const Elements<Format>& sorted) {
  return Arithmetic<Format>(sorted.key(sorted.words[work.out + work.size - 1]));
}

template <class Format>
__global__ __launch_bounds__(block_threads) void add_span(
    const Work* __restrict__ works, int work_count, const Elements<Format> sorted,
    typename Arithmetic<Format>::Total* totals) {
  using Total = typename Arithmetic<Format>::Total;
  alignas(16) __shared__ unsigned char memory[block_threads * sizeof(Total)];
  auto* parts = reinterpret_cast<Total*>(memory);
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<typename Format::Storage>(work);
  const Arithmetic<Format> arithmetic = arithmetic_of(work, sorted);
  const Word* words = sorted.words + work.out;
  Total total{};
  for (std::int64_t i = span.begin + threadIdx.x; i < span.end; i += block_threads) {
    arithmetic.add(total, sorted.key(words[i]));
  }
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

// What the lane `distance` further on has.
template <class Total>
__device__ Total shuffled_down(const Total& total, unsigned distance) {
  static_assert(sizeof(Total) == 2 * sizeof(double));
  double parts[2];
  memcpy(parts, &total, sizeof(Total));
  for (double& part : parts) part = __shfl_down_sync(0xffffffff, part, distance);
  Total shuffled;
  memcpy(&shuffled, parts, sizeof(Total));
  return shuffled;
}

// Goes through a span from its end, tile by tile, each of a few neighbours a thread: sums of all
// that comes later are added up in the threads, then over the block, then over the tiles.
template <class Format>
__global__ __launch_bounds__(block_threads) void score_span(
    const Work* __restrict__ works, int work_count, const Elements<Format> sorted,
    const typename Arithmetic<Format>::Total* later_spans) {
  using Key = typename Format::Storage;
  using Total = typename Arithmetic<Format>::Total;
  using Score = typename Arithmetic<Format>::Score;
  constexpr int neighbours = 4;
  constexpr int warps = block_threads / 32;
  alignas(16) __shared__ unsigned char memory[warps * sizeof(Total)];
  auto* warp_totals = reinterpret_cast<Total*>(memory);
  const Work& work = owner(works, work_count, blockIdx.x, &Work::first_block);
  const Span span = Span::of_block<Key>(work);
  const Arithmetic<Format> arithmetic = arithmetic_of(work, sorted);
  const Word* words = sorted.words + work.out;
  auto* target = reinterpret_cast<Score*>(work.target);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const unsigned lane = threadIdx.x % 32;
  Total later = later_spans[span.number];  // of all elements behind the tile
  constexpr int tile = block_threads * neighbours;
  const std::int64_t tiles = (span.end - span.begin + tile - 1) / tile;
  for (std::int64_t t = tiles; t-- > 0;) {
    const std::int64_t first = span.begin + t * tile + std::int64_t{threadIdx.x} * neighbours;
    Word own[neighbours];
    Total total{};
#pragma unroll
    for (int j = 0; j < neighbours; ++j) own[j] = first + j < span.end ? words[first + j] : 0;
#pragma unroll
    for (int j = 0; j < neighbours; ++j) {
      if (first + j < span.end) arithmetic.add(total, sorted.key(own[j]));
    }
    Total behind{};  // of the lanes behind this one
#pragma unroll
    for (unsigned distance = 1; distance < 32; distance *= 2) {
      const Total other = shuffled_down(total, distance);
      if (lane + distance < 32) total.add(other);
    }
    const Total next = shuffled_down(total, 1);
    if (lane < 31) behind = next;
    __syncthreads();
    if (lane == 0) warp_totals[warp] = total;
    __syncthreads();
    Total running = later;
    for (int w = warps; w-- > 0;) {
      if (w == warp) behind.add(running);
      running.add(warp_totals[w]);
    }
    later = running;
#pragma unroll
    for (int j = neighbours; j-- > 0;) {
      if (first + j >= span.end) continue;
      const std::int64_t index = sorted.index(work.out + first + j, own[j]);
      target[index] = arithmetic.add_and_score(behind, sorted.key(own[j]));
    }
  }
}

template <class Format>
void score_elements(const Batch& batch, const Work* works, std::byte* memory,
                    std::uint32_t* not_finite, cudaStream_t stream) {
  using Total = typename Arithmetic<Format>::Total;
  static_assert(sizeof(Total) <= Room::most_total_bytes);
  Room room(batch, memory);
  const auto count = static_cast<int>(batch.layers.size());
  const auto elements = [&] {
    return Elements<Format>{room.words[0], room.places[0], batch.index_bits};
  };
  launch("fill", fill_span<Format>, batch.spans, stream, works, count, elements(), not_finite);
  room.sort(batch, room.sort_memory, stream);
  auto* totals = reinterpret_cast<Total*>(room.totals);
  launch("add", add_span<Format>, batch.spans, stream, works, count, elements(), totals);
  constexpr std::int64_t item_size = sizeof(typename Format::Storage);
  launch("add_later", add_later_spans<Total>, std::int64_t{count}, stream, works, item_size,
         totals);
  launch("score", score_span<Format>, batch.spans, stream, works, count, elements(), totals);
}

}  // namespace

std::vector<Batch> batches(const std::vector<Layer>& layers, LayerIds ids) {
  std::stable_sort(ids.begin(), ids.end(),
                   [&](std::size_t a, std::size_t b) { return layers[a].dtype < layers[b].dtype; });
  std::int64_t all = 0;
  for (const std::size_t i : ids) all += layers[i].size;
  const std::int64_t most = std::max(least_batch_size, all / batch_share);
  std::vector<Batch> result;
  for (const std::size_t i : ids) {
    const Layer& layer = layers[i];
    if (layer.size == 0) continue;
    const bool is_wide = layer.dtype == Dtype::float64;
    const int index_bits = is_wide ? 0 : bits_of(layer.size);
    const auto joins = [&](const Batch& batch) {
      const auto count = static_cast<std::int64_t>(batch.layers.size()) + 1;
      const int word_bits = std::max(batch.index_bits, index_bits) + key_bits_of(layer.dtype);
      return batch.dtype == layer.dtype && !is_wide && batch.size + layer.size <= most &&
             word_bits + bits_of(count) <= 64;
    };
    if (result.empty() || !joins(result.back())) result.push_back({layer.dtype, {}});
    Batch& batch = result.back();
    batch.layers.push_back(i);
    batch.size += layer.size;
    batch.spans += spans_of(layer);
    batch.index_bits = std::max(batch.index_bits, index_bits);
  }
  return result;
}

std::int64_t score_bytes(const Batch& batch) { return Room(batch, nullptr).bytes; }

void score_batch(const Batch& batch, const Work* works, std::byte* memory,
                 std::uint32_t* not_finite, cudaStream_t stream) {
  with_format(batch.dtype, [&](auto format) {
    score_elements<decltype(format)>(batch, works, memory, not_finite, stream);
  });
}

}  // namespace lampfast::cuda
