// A histogram of the drawn elements of a layer by the leading bits of their keys. Histograms of
// parts of a draw add up.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "core/key_format.h"
#include "core/layer.h"

namespace lampfast {

// Bins are equal parts of octaves (factors of two) of magnitudes. A bin holds the keys that agree
// but for their last `shift` bits.
struct LogHistogram {
  std::int64_t drawn = 0;
  std::int64_t zeros = 0;  // how many of them are zero, or so small that their bin is zero's
  int shift = 0;
  std::uint64_t first = 0;            // key >> shift of counts[0], which also has all keys below it
  std::vector<std::uint32_t> counts;  // the last one is not empty

  // Counts what is beyond a bin as if it were in it.
  void limit(std::uint64_t bin) {
    if (first + counts.size() <= bin + 1) return;
    std::uint32_t beyond = 0;
    const std::size_t size = first <= bin ? static_cast<std::size_t>(bin + 1 - first) : 1;
    for (std::size_t b = size; b < counts.size(); ++b) beyond += counts[b];
    counts.resize(size);
    counts.back() += beyond;
    first = std::min(first, bin);
  }

  // Adds one of the same layer.
  void add(const LogHistogram& other) {
    drawn += other.drawn;
    zeros += other.zeros;
    shift = other.shift;
    if (other.counts.empty()) return;
    const std::uint64_t begin = counts.empty() ? other.first : std::max(first, other.first);
    const std::uint64_t end = std::max(first + counts.size(), other.first + other.counts.size());
    std::vector<std::uint32_t> sum(static_cast<std::size_t>(end - begin), 0);
    for (const LogHistogram* each : {&std::as_const(*this), &other}) {
      for (std::size_t b = 0; b < each->counts.size(); ++b) {
        sum[static_cast<std::size_t>(std::max(each->first + b, begin) - begin)] += each->counts[b];
      }
    }
    first = begin;
    counts = std::move(sum);
  }
};

// The shift that makes 2^bits_per_octave bins of an octave, or single keys if there are fewer.
template <class Format>
constexpr int histogram_shift(int bits_per_octave) {
  return Format::mantissa_bits > bits_per_octave ? Format::mantissa_bits - bits_per_octave : 0;
}

}  // namespace lampfast
