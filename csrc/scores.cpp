#include "scores.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "exact_sum.h"
#include "magnitude.h"
#include "radix_sort.h"
#include "walk.h"

namespace lampfast {
namespace {

template <class Format, class Visit>
void for_each_key(const Layer& layer, Visit&& visit) {
  const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
  Walk<1>(layer.shape, {&layer.strides}, Order::row_major)
      .runs(0, layer.size, [&](std::int64_t index, const auto& offsets, std::int64_t length) {
        for (std::int64_t i = 0; i < length; ++i) {
          const auto key = Format::key(data[offsets[0] + i]);
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
  for_each_key<Format>(layer, [&](std::int64_t, auto key) { ++table[key].remaining; });
  Sum sum;
  for (std::size_t key = table.size(); key-- > 0;) {
    table[key].after = sum.value();
    const double square = scaled_square<Format>(static_cast<typename Format::Storage>(key), 1.0);
    sum.add(static_cast<double>(table[key].remaining) * square);
  }
  for_each_key<Format>(layer, [&](std::int64_t index, auto key) {
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

// A sum of squares in twice the precision of a double, so that float64 scores round only once.
class DoubleSum {
 public:
  // Adds (magnitude * 2^exponent)^2 without rounding the square.
  void add_square(double magnitude, int exponent) {
    const double square = magnitude * magnitude;
    sum_.low += std::ldexp(std::fma(magnitude, magnitude, -square), 2 * exponent);
    sum_.add(std::ldexp(square, 2 * exponent));
    const double high = sum_.high + sum_.low;
    sum_.low = sum_.low - (high - sum_.high);
    sum_.high = high;
  }

  // magnitude^2 / sum.
  double ratio(double magnitude) const {
    const double square = magnitude * magnitude;
    const double error = std::fma(magnitude, magnitude, -square);
    const double quotient = square / sum_.high;
    const double rest = std::fma(-quotient, sum_.high, square) + (error - quotient * sum_.low);
    return quotient + rest / sum_.high;
  }

 private:
  Sum sum_;
};

template <class Entries>
void write_scores(const Entries& sorted, float* output) {
  Sum sum;
  for (std::size_t i = sorted.size(); i-- > 0;) {
    const double square = scaled_square<Float32>(sorted[i].key, 1.0);
    sum.add(square);
    output[sorted[i].index] = sorted[i].key == 0 ? 0.0F : static_cast<float>(square / sum.value());
  }
}

template <class Entries>
void write_scores(const Entries& sorted, double* output) {
  if (sorted.empty()) return;
  // Magnitudes as a double in [1, 2) and an exponent, relative to the largest: whatever underflows
  // in the sum is too small to matter there, and no score does.
  int largest = 0;
  std::frexp(Float64::value(sorted.back().key), &largest);
  DoubleSum sum;
  for (std::size_t i = sorted.size(); i-- > 0;) {
    int exponent = 0;
    const double magnitude = std::frexp(Float64::value(sorted[i].key), &exponent);
    if (sorted[i].key == 0) {
      output[sorted[i].index] = 0.0;
      continue;
    }
    exponent -= largest;
    sum.add_square(magnitude, exponent);
    output[sorted[i].index] = std::ldexp(sum.ratio(magnitude), 2 * exponent);
  }
}

template <class Format, class Index, class Score>
void score_by_sort(const Layer& layer, Score* output) {
  using Key = typename Format::Storage;
  std::vector<Entry<Key, Index>> entries;
  entries.reserve(static_cast<std::size_t>(layer.size));
  for_each_key<Format>(layer, [&](std::int64_t index, Key key) {
    entries.push_back({key, static_cast<Index>(index)});
  });
  radix_sort(entries, std::numeric_limits<Key>::digits - 1,
             [](const Entry<Key, Index>& entry) { return entry.key; });
  write_scores(entries, output);
}

}  // namespace

void score(const std::vector<Layer>& layers, const std::vector<Layer>& outputs, cpu::Team& team) {
  std::vector<std::size_t> largest_first(layers.size());
  std::iota(largest_first.begin(), largest_first.end(), std::size_t{0});
  std::stable_sort(largest_first.begin(), largest_first.end(),
                   [&](std::size_t a, std::size_t b) { return layers[a].size > layers[b].size; });
  std::int64_t total = 0;
  for (const Layer& layer : layers) total += layer.size;
  team.for_each(static_cast<std::int64_t>(layers.size()), total, [&](std::int64_t t, int) {
    const std::size_t i = largest_first[static_cast<std::size_t>(t)];
    const Layer& layer = layers[i];
    const bool narrow = layer.size <= std::numeric_limits<std::uint32_t>::max();
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr std::size_t width = sizeof(typename Format::Storage);
      using Score = std::conditional_t<width == 8, double, float>;
      auto* output = reinterpret_cast<Score*>(outputs[i].data);
      if constexpr (width <= 2) {
        score_by_table<Format>(layer, output);
      } else if (narrow) {
        score_by_sort<Format, std::uint32_t>(layer, output);
      } else {
        score_by_sort<Format, std::uint64_t>(layer, output);
      }
    });
  });
}

}  // namespace lampfast
