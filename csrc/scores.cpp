#include "scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "chunks.h"
#include "cpu/kernels.h"
#include "cpu/pages.h"
#include "cpu/parallel.h"
#include "exact_sum.h"
#include "magnitude.h"
#include "radix_sort.h"
#include "walk.h"

namespace lampfast {
namespace {

// Calls visit(index, key) for the elements with row-major indices in [begin, end).
template <class Format, class Visit>
void for_each_key(const Layer& layer, std::int64_t begin, std::int64_t end, Visit&& visit) {
  const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
  const Walk<1, 0> walk(layer.shape, {&layer.strides}, Order::row_major);
  const std::int64_t step = walk.step()[0];
  walk.runs(begin, end, [&](std::int64_t index, const auto& offsets, std::int64_t length) {
    for (std::int64_t i = 0; i < length; ++i) {
      const auto key = Format::key(data[offsets[0] + i * step]);
      if (key >= Format::not_finite) throw NotFinite();
      visit(index + i, key);
    }
  });
}

// Eight and sixteen bits: a table of all magnitudes takes the place of a sort.
template <class Format>
void score_by_table(const Layer& layer, float* output) {
  struct Magnitude {
    std::int64_t remaining = 0;  // from the next element of this magnitude on
    double after = 0.0;          // the squares of all larger magnitudes
  };
  std::vector<Magnitude> table(Format::not_finite);
  for_each_key<Format>(layer, 0, layer.size, [&](auto, auto key) { ++table[key].remaining; });
  Sum sum;
  for (std::size_t key = table.size(); key-- > 0;) {
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

template <class Key, class Index>
struct Entry {
  Key key;
  Index index;
};
template <class Key, class Index>
struct ItemOf {
  using type = Entry<Key, Index>;
};
template <>
struct ItemOf<std::uint32_t, std::uint32_t> {
  using type = cpu::Pair32;
};

// Elements in order of magnitude, of which the last ones are the largest.
template <class Item>
struct Sorted {
  Item* items;
  std::size_t count;
};

// float32: squares are exact in a double, and sums of a few of them nearly so.
class Single {
 public:
  using Format = Float32;
  using Score = float;
  using Total = Sum;

  explicit Single(std::uint32_t) {}

  template <class Item>
  Total total(const Sorted<Item>& sorted) const {
    Sum sum;
    for (std::size_t end = sorted.count; end > 0;) {
      const std::size_t begin = end > block ? end - block : 0;
      double part = 0.0;
      for (; end > begin; --end) part += scaled_square<Float32>(sorted.items[end - 1].key, 1.0);
      sum.add(part);
    }
    return sum;
  }

  // Writes the scores of elements that are followed by others with this total of squares, to the
  // output or, where there is none, in the place of their keys.
  template <class Item>
  void write(const Sorted<Item>& sorted, Total& after, float* output) const {
    for (std::size_t end = sorted.count; end > 0;) {
      const std::size_t begin = end > block ? end - block : 0;
      write_block(sorted.items, begin, end, after, output);
      end = begin;
    }
  }

 private:
  static constexpr std::size_t block = cpu::score_block;

  // A whole block of pairs: where they are, or copies, with zeros before them where they are few.
  static const cpu::Pair32* whole_block(const cpu::Pair32* items, std::size_t count,
                                        cpu::Pair32 (&copies)[cpu::score_block]) {
    return count == block ? items : whole_block<cpu::Pair32>(items, count, copies);
  }
  template <class Item>
  static const cpu::Pair32* whole_block(const Item* items, std::size_t count,
                                        cpu::Pair32 (&copies)[cpu::score_block]) {
    std::fill_n(copies, block - count, cpu::Pair32{0, 0});
    for (std::size_t i = 0; i < count; ++i) copies[block - count + i] = {items[i].key, 0};
    return copies;
  }

  template <class Item>
  void write_block(Item* items, std::size_t begin, std::size_t end, Sum& after,
                   float* output) const {
    const std::size_t count = end - begin;
    cpu::Pair32 copies[block];
    float scores[block];
    const double sum =
        score_pairs_(whole_block(items + begin, count, copies), after.value(), scores);
    const float* last_scores = scores + (block - count);
    after.add(sum);
    if (output == nullptr) {
      for (std::size_t i = 0; i < count; ++i) {
        items[begin + i].key = bit_cast<std::uint32_t>(last_scores[i]);
      }
      return;
    }
    // The places lie anywhere in the output: ask for the next block's while these are written.
    const std::size_t ahead = begin > block ? block : 0;
    for (std::size_t i = 0; i < count; ++i) {
      __builtin_prefetch(output + items[begin + i - ahead].index, 1);
      output[items[begin + i].index] = last_scores[i];
    }
  }

  cpu::ScorePairs score_pairs_ = cpu::score_pairs();
};

// float64: in twice the precision, so that a score rounds only once. Magnitudes are a double in
// [1, 2) and an exponent relative to the largest one's: whatever underflows in the sum is too small
// to matter there, and no score does.
class Double {
 public:
  using Format = Float64;
  using Score = double;

  explicit Double(std::uint64_t largest_key)
      : largest_exponent_(std::ilogb(Float64::value(std::max<std::uint64_t>(largest_key, 1)))) {}

  struct Total {
    Sum sum;

    // Adds (magnitude * 2^exponent)^2 without rounding the square.
    void add_square(double magnitude, int exponent) {
      const double square = magnitude * magnitude;
      sum.low += std::ldexp(std::fma(magnitude, magnitude, -square), 2 * exponent);
      sum.add(std::ldexp(square, 2 * exponent));
      normalise();
    }

    void add(const Total& other) {
      sum.add(other.sum);
      normalise();
    }

    // magnitude^2 / sum.
    double ratio(double magnitude) const {
      const double square = magnitude * magnitude;
      const double error = std::fma(magnitude, magnitude, -square);
      const double quotient = square / sum.high;
      const double rest = std::fma(-quotient, sum.high, square) + (error - quotient * sum.low);
      return quotient + rest / sum.high;
    }

   private:
    void normalise() {
      const double high = sum.high + sum.low;
      sum.low = sum.low - (high - sum.high);
      sum.high = high;
    }
  };

  template <class Item>
  Total total(const Sorted<Item>& sorted) const {
    Total total;
    for (std::size_t i = sorted.count; i-- > 0;) add(total, sorted.items[i].key);
    return total;
  }

  template <class Item>
  void write(const Sorted<Item>& sorted, Total& after, double* output) const {
    for (std::size_t i = sorted.count; i-- > 0;) {
      Item& item = sorted.items[i];
      const double score = add(after, item.key);
      if (output == nullptr) {
        item.key = bit_cast<std::uint64_t>(score);
      } else {
        output[item.index] = score;
      }
    }
  }

 private:
  // Adds a magnitude, and returns its score.
  double add(Total& total, std::uint64_t key) const {
    if (key == 0) return 0.0;
    const double value = Float64::value(key);
    const int exponent = std::ilogb(value);
    const double magnitude = std::ldexp(value, -exponent);
    total.add_square(magnitude, exponent - largest_exponent_);
    return std::ldexp(total.ratio(magnitude), 2 * (exponent - largest_exponent_));
  }

  int largest_exponent_;
};

// What one thread works in.
struct Rooms {
  cpu::Room items;
  cpu::Room other_items;
};

// Puts items of all threads into groups, in each in the order that they come in: counts them part
// by part, and then moves each to its place.
template <class Place>
class Deal {
 public:
  Deal(std::int64_t size, std::size_t groups, cpu::Team& team)
      : size_(size),
        groups_(groups),
        team_(team),
        parts_(std::clamp<std::int64_t>(size / part_size, 1, 4 * team.size())),
        places_(static_cast<std::size_t>(parts_)) {}

  // visit(begin, end, put) calls put(item, group) for the items [begin, end). Returns where each
  // group begins, and the end of the last.
  template <class Item, class Visit>
  std::vector<Place> run(Item* to, Visit&& visit) {
    for_each_part([&](std::size_t part, std::int64_t begin, std::int64_t end) {
      places_[part].resize(groups_);
      Place* counts = places_[part].data();
      visit(begin, end, [counts](const Item&, std::size_t group) { ++counts[group]; });
    });
    std::vector<Place> starts(groups_ + 1);
    Place start = 0;
    for (std::size_t group = 0; group < groups_; ++group) {
      starts[group] = start;
      for (std::vector<Place>& places : places_) {
        const Place count = places[group];
        places[group] = start;
        start += count;
      }
    }
    starts[groups_] = start;
    for_each_part([&](std::size_t part, std::int64_t begin, std::int64_t end) {
      Place* next = places_[part].data();
      visit(begin, end,
            [to, next](const Item& item, std::size_t group) { to[next[group]++] = item; });
    });
    return starts;
  }

 private:
  static constexpr std::int64_t part_size = 1 << 17;

  // Calls body(part, begin, end) for parts of the whole.
  template <class Body>
  void for_each_part(Body&& body) {
    team_.for_each(parts_, size_, [&](std::int64_t part, int) {
      body(static_cast<std::size_t>(part), part_begin(size_, parts_, part),
           part_begin(size_, parts_, part + 1));
    });
  }

  std::int64_t size_;
  std::size_t groups_;
  cpu::Team& team_;
  std::int64_t parts_;
  std::vector<std::vector<Place>> places_;
};

// Scores one layer: its elements are dealt to buckets by the leading bits of their keys, each
// bucket is sorted, and the scores are written from the largest magnitude down.
template <class Arithmetic, class Index>
class BucketSort {
 public:
  using Format = typename Arithmetic::Format;
  using Key = typename Format::Storage;
  using Score = typename Arithmetic::Score;
  using Item = typename ItemOf<Key, Index>::type;

  // `rooms` has one for each thread of the team.
  BucketSort(const Layer& layer, Score* output, Rooms* rooms, cpu::Team& team)
      : layer_(layer),
        size_(static_cast<std::size_t>(layer.size)),
        output_(output),
        rooms_(rooms),
        team_(team) {
    // Buckets of a size that the cache of one core holds, where the magnitudes of a layer spread
    // over a few powers of two.
    int bits = 0;
    while (bits < most_bits && (layer.size >> bits) > bucket_size) ++bits;
    rest_bits_ = Format::mantissa_bits - bits;
  }

  void score() {
    if (size_ == 0) return;
    items_ = rooms_[0].items.template of<Item>(size_);
    deal();
    const auto [top_begin, top_end] = buckets_.back();
    const auto smaller = [](const Item& a, const Item& b) { return a.key < b.key; };
    const Arithmetic arithmetic(
        std::max_element(items_ + top_begin, items_ + top_end, smaller)->key);
    const bool in_windows = layer_.size > most_direct;
    write_scores(arithmetic, in_windows ? nullptr : output_);
    if (in_windows) write_windows();
  }

 private:
  static constexpr std::int64_t bucket_size = 1 << 16;
  static constexpr int most_bits = 7;
  static constexpr std::int64_t most_direct = 1 << 22;
  static constexpr int window_bits = 17;

  struct Bucket {
    std::size_t begin;
    std::size_t end;
  };

  // In each bucket the elements are in the order of their indices.
  void deal() {
    const std::size_t groups = (std::size_t{Format::not_finite} >> rest_bits_) + 1;
    const auto starts =
        Deal<Index>(layer_.size, groups, team_)
            .run(items_, [&](std::int64_t begin, std::int64_t end, auto&& put) {
              for_each_key<Format>(layer_, begin, end, [&](std::int64_t index, Key key) {
                put(Item{key, static_cast<Index>(index)},
                    static_cast<std::size_t>(key >> rest_bits_));
              });
            });
    for (std::size_t group = 0; group < groups; ++group) {
      if (starts[group] < starts[group + 1]) {
        buckets_.push_back({starts[group], starts[group + 1]});
      }
    }
  }

  void sort(const Bucket& bucket, int worker) {
    const std::size_t count = bucket.end - bucket.begin;
    Item* items = items_ + bucket.begin;
    Item* other = rooms_[worker].other_items.template of<Item>(count);
    const auto rest = [mask = (Key{1} << rest_bits_) - 1](const Item& item) {
      return item.key & mask;
    };
    const Item* sorted = radix_sort(items, other, count, rest_bits_, rest);
    if (sorted != items) std::copy_n(sorted, count, items);
  }

  void write_scores(const Arithmetic& arithmetic, Score* output) {
    const auto sorted = [&](std::size_t b) {
      return Sorted<Item>{items_ + buckets_[b].begin, buckets_[b].end - buckets_[b].begin};
    };
    typename Arithmetic::Total after{};
    if (team_.size() == 1) {  // each bucket at once, while the cache has it
      for (std::size_t b = buckets_.size(); b-- > 0;) {
        sort(buckets_[b], 0);
        arithmetic.write(sorted(b), after, output);
      }
      return;
    }
    std::vector<typename Arithmetic::Total> totals(buckets_.size());
    const auto count = static_cast<std::int64_t>(buckets_.size());
    team_.for_each(count, layer_.size, [&](std::int64_t task, int worker) {
      const auto b = static_cast<std::size_t>(count - 1 - task);
      sort(buckets_[b], worker);
      totals[b] = arithmetic.total(sorted(b));
    });
    for (std::size_t b = buckets_.size(); b-- > 0;) {
      const auto own = totals[b];
      totals[b] = after;
      after.add(own);
    }
    team_.for_each(count, layer_.size, [&](std::int64_t task, int) {
      const auto b = static_cast<std::size_t>(task);
      arithmetic.write(sorted(b), totals[b], output);
    });
  }

  // Where the output is too large for the cache, scores are first dealt to windows of it.
  void write_windows() {
    const std::size_t windows = ((size_ - 1) >> window_bits) + 1;
    Item* dealt = rooms_[0].other_items.template of<Item>(size_);
    const auto starts =
        Deal<Index>(layer_.size, windows, team_)
            .run(dealt, [&](std::int64_t begin, std::int64_t end, auto&& put) {
              for (std::int64_t i = begin; i < end; ++i) {
                put(items_[i], static_cast<std::size_t>(items_[i].index >> window_bits));
              }
            });
    team_.for_each(static_cast<std::int64_t>(windows), layer_.size, [&](std::int64_t w, int) {
      const auto window = static_cast<std::size_t>(w);
      for (std::size_t i = starts[window]; i < starts[window + 1]; ++i) {
        output_[dealt[i].index] = bit_cast<Score>(dealt[i].key);
      }
    });
  }

  const Layer& layer_;
  std::size_t size_;
  Score* output_;
  Rooms* rooms_;
  cpu::Team& team_;
  int rest_bits_;  // of a key, that its bucket does not tell
  Item* items_ = nullptr;
  std::vector<Bucket> buckets_;  // those that have elements
};

template <class Arithmetic>
void score_by_sort(const Layer& layer, const Layer& output, Rooms* rooms, cpu::Team& team) {
  auto* scores = reinterpret_cast<typename Arithmetic::Score*>(output.data);
  cpu::use_large_pages(scores, static_cast<std::size_t>(layer.size) * sizeof(*scores));
  if (layer.size <= std::numeric_limits<std::uint32_t>::max()) {
    BucketSort<Arithmetic, std::uint32_t>(layer, scores, rooms, team).score();
  } else {
    BucketSort<Arithmetic, std::uint64_t>(layer, scores, rooms, team).score();
  }
}

void score_layer(const Layer& layer, const Layer& output, Rooms* rooms, cpu::Team& team) {
  with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    using Key = typename Format::Storage;
    if constexpr (sizeof(Key) <= 2) {
      score_by_table<Format>(layer, reinterpret_cast<float*>(output.data));
    } else {
      using Arithmetic = std::conditional_t<sizeof(Key) == 8, Double, Single>;
      score_by_sort<Arithmetic>(layer, output, rooms, team);
    }
  });
}

}  // namespace

void score(const std::vector<Layer>& layers, const std::vector<Layer>& outputs, cpu::Team& team) {
  const cpu::DefaultFloatEnvironment environment;
  std::int64_t total = 0;
  for (const Layer& layer : layers) total += layer.size;
  // A layer that is much of the whole is everybody's; the others are scored one a thread, the
  // largest first.
  std::vector<Rooms> rooms(static_cast<std::size_t>(team.size()));
  std::vector<std::size_t> alone;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].size > total / (4 * team.size())) {
      score_layer(layers[i], outputs[i], rooms.data(), team);
    } else {
      alone.push_back(i);
    }
  }
  std::stable_sort(alone.begin(), alone.end(),
                   [&](std::size_t a, std::size_t b) { return layers[a].size > layers[b].size; });
  team.for_each(static_cast<std::int64_t>(alone.size()), total, [&](std::int64_t t, int worker) {
    const std::size_t i = alone[static_cast<std::size_t>(t)];
    cpu::Team one(1);
    score_layer(layers[i], outputs[i], &rooms[static_cast<std::size_t>(worker)], one);
  });
}

}  // namespace lampfast
