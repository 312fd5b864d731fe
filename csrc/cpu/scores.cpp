// The LAMP score of every element in host memory. Unlike pruning, this needs the full order of each
// layer.
#include <algorithm>
#include <limits>
#include <type_traits>

#include "core/compensated_sum.h"
#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/float32_score.h"
#include "cpu/grouping.h"
#include "cpu/host_backend.h"
#include "cpu/large_pages.h"
#include "cpu/radix_sort.h"
#include "cpu/thread_pool.h"

namespace lampfast::cpu {
namespace {

// Calls visit(index, key) for the elements with row-major indices in [begin, end).
template <class Format, class Visit>
void for_each_key(const Layer& layer, std::int64_t begin, std::int64_t end, Visit&& visit) {
  using Key = typename Format::Storage;
  const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::row_major);
  const std::int64_t step = walk.step()[0];
  Key loaded[most_gathered];
  walk.runs(begin, end, [&](std::int64_t index, const auto& offsets, std::int64_t length) {
    const ElementRun run{offsets[0], step, index, 1};
    for (std::int64_t done = 0; done < length; done += most_gathered) {
      const std::int64_t count = std::min(most_gathered, length - done);
      const Key* elements = load(layer, run.from(done), count, loaded);
      for (std::int64_t i = 0; i < count; ++i) visit(index + done + i, Format::key(elements[i]));
    }
  });
}

// 8-bit and 16-bit dtypes: a table of all magnitudes takes the place of a sort.
template <class Format>
void score_by_table(const Layer& layer, float* output) {
  struct Magnitude {
    std::int64_t remaining = 0;  // elements of this magnitude from the next one on
    double after = 0.0;          // sum of the squares of all larger magnitudes
  };
  std::vector<Magnitude> table(std::size_t{Format::magnitude_mask} + 1);
  for_each_key<Format>(layer, 0, layer.size, [&](auto, auto key) { ++table[key].remaining; });
  CompensatedSum sum;
  for (std::size_t key = table.size(); key-- > 0;) {
    if (table[key].remaining == 0) continue;
    if (key >= Format::not_finite) throw NotFinite();
    table[key].after = sum.value();
    const double square = scaled_square<Format>(static_cast<typename Format::Storage>(key), 1.0);
    sum.add(static_cast<double>(table[key].remaining) * square);
  }
  for_each_key<Format>(layer, 0, layer.size, [&](std::int64_t index, auto key) {
    Magnitude& magnitude = table[key];
    const double square = scaled_square<Format>(key, 1.0);
    const double from = magnitude.after + static_cast<double>(magnitude.remaining--) * square;
    output[index] = key == 0 ? 0.0F : static_cast<float>(square / from);
  });
}

// The buffers of one thread.
struct SortBuffers {
  ReusedBuffer keys;
  ReusedBuffer items;
  ReusedBuffer other_items;
};

// A bucket's magnitudes in ascending order. Each is a word: the low bits of the key, which its
// bucket does not determine, and below them its place in the bucket.
template <class Key, class Word>
struct Packed {
  const Word* items;
  std::size_t count;
  Key base;  // of all keys in the bucket
  int place_bits;

  Key key(std::size_t i) const { return base + static_cast<Key>(items[i] >> place_bits); }
  std::size_t place(std::size_t i) const {
    return static_cast<std::size_t>(items[i] & ((Word{1} << place_bits) - 1));
  }
};

// A bucket of equal magnitudes, which needs no sort.
template <class Key>
struct Equal {
  std::size_t count;
  Key only;

  Key key(std::size_t) const { return only; }
  std::size_t place(std::size_t i) const { return i; }
};

// Scores one layer. Its keys are dealt to buckets by their leading bits. Each bucket, from the
// largest magnitudes down, is sorted in the cache, and its scores replace its keys. The scores are
// then collected in the layer's order.
template <class Arithmetic, class Index>
class BucketSort {
 public:
  using Format = typename Arithmetic::Format;
  using Key = typename Format::Storage;
  using Score = typename Arithmetic::Score;
  using Total = typename Arithmetic::Total;

  // `buffers` has one entry for each thread of the pool.
  BucketSort(const Layer& layer, Score* output, SortBuffers* buffers, ThreadPool& pool)
      : layer_(layer),
        size_(static_cast<std::size_t>(layer.size)),
        output_(output),
        buffers_(buffers),
        pool_(pool) {
    // Both the number of buckets and their sizes grow with the root of the layer's size, so that
    // dealing writes to few places at a time and a bucket fits the cache. A word of 32 bits then
    // has room for the rest of a float32's key and a place.
    int bits = 0;
    while ((layer.size >> (2 * bits)) > bucket_size) ++bits;
    rest_bits_ = Format::mantissa_bits - bits;
  }

  void score() {
    if (size_ == 0) return;
    const auto visit = [&](std::int64_t begin, std::int64_t end, auto&& body) {
      for_each_key<Format>(layer_, begin, end, body);
    };
    const std::size_t groups = (std::size_t{Format::magnitude_mask} >> rest_bits_) + 1;
    Grouping<Index> grouping(layer_.size, groups, rest_bits_, pool_, visit);
    if (grouping.starts()[Format::not_finite >> rest_bits_] < size_) throw NotFinite();
    keys_ = buffers_[0].keys.template of<Key>(size_);
    // Prefetches the next cache line of each group: the hardware cannot follow so many streams.
    constexpr std::size_t ahead = 32 / sizeof(Key);
    grouping.for_each(visit, [to = keys_](auto, Key key, Index place) {
      __builtin_prefetch(to + place + ahead, 1);
      // Where another thread changes weights after they were counted, two parts of the layer may
      // meet at a place.
      __atomic_store_n(to + place, key, __ATOMIC_RELAXED);
    });
    find_buckets(grouping.starts());
    score_buckets();
    grouping.for_each(visit, [from = keys_, to = output_](auto index, Key, Index place) {
      __builtin_prefetch(from + place + ahead);
      to[index] = bit_cast<Score>(from[place]);
    });
  }

 private:
  static constexpr std::int64_t bucket_size = test_sizes ? 1 : 1 << 11;

  struct Bucket {
    std::size_t begin;
    std::size_t count;
  };

  void find_buckets(const std::vector<Index>& starts) {
    for (std::size_t group = starts.size() - 1; group-- > 0;) {
      const std::size_t begin = starts[group];
      const std::size_t count = starts[group + 1] - begin;
      if (count > 0) buckets_.push_back({begin, count});
    }
  }

  void score_buckets() {
    const Bucket& top = buckets_.front();
    const Arithmetic arithmetic(
        *std::max_element(keys_ + top.begin, keys_ + top.begin + top.count));
    Total after{};
    if (pool_.size() == 1) {
      for (const Bucket& bucket : buckets_) score_bucket(arithmetic, bucket, after, 0);
      return;
    }
    std::vector<Total> totals(buckets_.size());
    const auto count = static_cast<std::int64_t>(buckets_.size());
    pool_.for_each(count, layer_.size, [&](std::int64_t task, int) {
      const auto b = static_cast<std::size_t>(task);
      totals[b] = arithmetic.total(keys_ + buckets_[b].begin, buckets_[b].count);
    });
    for (Total& total : totals) {
      const Total bucket_total = total;
      total = after;
      after.add(bucket_total);
    }
    pool_.for_each(count, layer_.size, [&](std::int64_t task, int worker) {
      const auto b = static_cast<std::size_t>(task);
      score_bucket(arithmetic, buckets_[b], totals[b], worker);
    });
  }

  // Replaces the keys of a bucket by their scores, and adds the bucket to `after`.
  void score_bucket(const Arithmetic& arithmetic, const Bucket& bucket, Total& after, int worker) {
    Key* keys = keys_ + bucket.begin;
    if (std::all_of(keys, keys + bucket.count, [&](Key key) { return key == *keys; })) {
      arithmetic.write(Equal<Key>{bucket.count, *keys}, after, keys);
      return;
    }
    using Wide = std::conditional_t<sizeof(Key) == 4, std::uint64_t, Uint128>;
    int place_bits = 0;
    while ((bucket.count - 1) >> place_bits != 0) ++place_bits;
    if (rest_bits_ + place_bits <= 8 * static_cast<int>(sizeof(Key))) {
      score_sorted<Key>(arithmetic, keys, bucket.count, place_bits, after, worker);
    } else {
      score_sorted<Wide>(arithmetic, keys, bucket.count, place_bits, after, worker);
    }
  }

  template <class Word>
  void score_sorted(const Arithmetic& arithmetic, Key* keys, std::size_t count, int place_bits,
                    Total& after, int worker) {
    Word* items = buffers_[worker].items.template of<Word>(count);
    Word* other = buffers_[worker].other_items.template of<Word>(count);
    const Key rest = (Key{1} << rest_bits_) - 1;
    const Key base = keys[0] & ~rest;
    for (std::size_t i = 0; i < count; ++i) {
      items[i] = Word{keys[i] & rest} << place_bits | static_cast<Word>(i);
    }
    const Word* sorted =
        radix_sort(items, other, count, rest_bits_, [=](Word item) { return item >> place_bits; });
    arithmetic.write(Packed<Key, Word>{sorted, count, base, place_bits}, after, keys);
  }

  const Layer& layer_;
  std::size_t size_;
  Score* output_;
  SortBuffers* buffers_;
  ThreadPool& pool_;
  int rest_bits_;                // the low bits of a key, which its bucket does not determine
  Key* keys_ = nullptr;          // dealt to the buckets
  std::vector<Bucket> buckets_;  // those that have elements, the largest first
};

template <class Arithmetic>
void score_by_sort(const Layer& layer, const Layer& output, SortBuffers* buffers,
                   ThreadPool& pool) {
  auto* scores = reinterpret_cast<typename Arithmetic::Score*>(output.data);
  use_large_pages(scores, static_cast<std::size_t>(layer.size) * sizeof(*scores));
  if (layer.size <= std::numeric_limits<std::uint32_t>::max()) {
    BucketSort<Arithmetic, std::uint32_t>(layer, scores, buffers, pool).score();
  } else {
    BucketSort<Arithmetic, std::uint64_t>(layer, scores, buffers, pool).score();
  }
}

void score_layer(const Layer& layer, const Layer& output, SortBuffers* buffers, ThreadPool& pool) {
  with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    using Key = typename Format::Storage;
    if constexpr (sizeof(Key) <= 2) {
      score_by_table<Format>(layer, reinterpret_cast<float*>(output.data));
    } else {
      using Arithmetic = std::conditional_t<sizeof(Key) == 8, Float64Score, Float32Score>;
      score_by_sort<Arithmetic>(layer, output, buffers, pool);
    }
  });
}

}  // namespace

void HostBackend::score(const LayerIds& ids) {
  std::int64_t total = 0;
  for (const std::size_t id : ids) total += layers_[id].size;
  // A layer that is a large part of the whole is scored by all threads; the others are scored by
  // one thread each, the largest first.
  std::vector<SortBuffers> buffers(static_cast<std::size_t>(pool_.size()));
  LayerIds small;
  for (const std::size_t id : ids) {
    if (layers_[id].size > total / (4 * pool_.size())) {
      score_layer(layers_[id], targets_[id], buffers.data(), pool_);
    } else {
      small.push_back(id);
    }
  }
  std::stable_sort(small.begin(), small.end(),
                   [&](std::size_t a, std::size_t b) { return layers_[a].size > layers_[b].size; });
  pool_.for_each(static_cast<std::int64_t>(small.size()), total, [&](std::int64_t t, int worker) {
    const std::size_t id = small[static_cast<std::size_t>(t)];
    ThreadPool one(1);
    score_layer(layers_[id], targets_[id], &buffers[static_cast<std::size_t>(worker)], one);
  });
}

}  // namespace lampfast::cpu
