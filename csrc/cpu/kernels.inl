// The kernels for one instruction set. Included by a translation unit with its own compiler flags,
// which names the namespace LAMPFAST_ISA; nothing here may call a function that other units share,
// or the linker could give them a version for the wrong processor.

#include <cstring>
#include <limits>

#if defined(__AVX512BW__)
// GCC 12 takes the deliberately undefined operands inside its own header for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#endif

#include "cpu/kernels.h"
#include "magnitude.h"

namespace lampfast::cpu::LAMPFAST_ISA {
namespace {

constexpr int lane_count = 8;

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(lane_count * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::type;

// FloatFormat::value for several keys at once.
template <class Format>
inline void values(Lanes<double>& result, const Lanes<typename Format::Storage>& keys) {
  using Key = typename Format::Storage;
  if constexpr (sizeof(Key) == 8) {
    std::memcpy(&result, &keys, sizeof(result));
  } else if constexpr (sizeof(Key) == 4) {
    Lanes<float> narrow;
    std::memcpy(&narrow, &keys, sizeof(narrow));
    result = __builtin_convertvector(narrow, Lanes<double>);
  } else {
    const auto wide = __builtin_convertvector(keys, Lanes<std::uint32_t>);
    const Lanes<std::uint32_t> bits = wide << (23 - Format::mantissa_bits);
    Lanes<float> narrow;
    std::memcpy(&narrow, &bits, sizeof(narrow));
    narrow *= Format::rebias;
    const Lanes<float> nan = narrow * 0.0F + std::numeric_limits<float>::quiet_NaN();
    narrow = wide < std::uint32_t{Format::not_finite} ? narrow : nan;
    result = __builtin_convertvector(narrow, Lanes<double>);
  }
}

// Short plain loops, each of a form that compilers vectorise.
template <class Format>
class Block {
 public:
  using Key = typename Format::Storage;

  Block(const Key* elements, int count) : count_(count) {
    for (int i = 0; i < count; ++i) {
      keys_[i] = static_cast<Key>(elements[i] & Format::magnitude_mask);
    }
    // Zeros behind them, which are below every bracket, make whole units.
    for (padded_ = count; padded_ % unit != 0; ++padded_) keys_[padded_] = 0;
  }

  int count_below(Key bound) const {
    int below = 0;
    for (int i = 0; i < count_; ++i) below += keys_[i] < bound;
    return below;
  }

  double sum_from(Key bound, double scale) const {
    // Two sums for every lane, so that an addition need not wait for the one before it.
    Lanes<double> sums[2] = {};
    for (int i = 0; i < padded_; i += unit) {
      for (int half = 0; half < 2; ++half) {
        Lanes<Key> keys;
        std::memcpy(&keys, keys_ + i + half * lane_count, sizeof(keys));
        keys = keys >= bound ? keys : keys ^ keys;
        Lanes<double> value;
        values<Format>(value, keys);
        if constexpr (sizeof(Key) == 8) value *= scale;
        sums[half] += value * value;
      }
    }
    const Lanes<double> both = sums[0] + sums[1];
    double sum = 0.0;
    for (int lane = 0; lane < lane_count; ++lane) sum += both[lane];
    return sum;
  }

  int compact(Key low, Key high, Key* inside) const {
    alignas(64) std::uint8_t flags[classify_block];
    const auto width = static_cast<Key>(high - low);
    for (int i = 0; i < padded_; ++i) flags[i] = static_cast<Key>(keys_[i] - low) < width ? 1 : 0;
    int found = 0;
    for (int i = 0; i < padded_; i += 8) {
      std::uint64_t any;
      std::memcpy(&any, flags + i, sizeof(any));
      if (any == 0) continue;
      for (int j = i; j < i + 8; ++j) {
        inside[found] = keys_[j];
        found += flags[j];
      }
    }
    return found;
  }

 private:
  static constexpr int unit = 2 * lane_count;

  int count_;
  int padded_;
  alignas(64) Key keys_[classify_block];
};

#if defined(__AVX512BW__)
// float32: one pass, with the keys inside compressed in registers.
Classified classify_float32(const std::uint32_t* elements, int count, std::uint32_t low,
                            std::uint32_t high, std::uint32_t* inside) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  const __m512i lows = _mm512_set1_epi32(static_cast<int>(low));
  const __m512i highs = _mm512_set1_epi32(static_cast<int>(high));
  __m512d sum0 = _mm512_setzero_pd();
  __m512d sum1 = _mm512_setzero_pd();
  int below = 0;
  int above = 0;
  int found = 0;
  for (int i = 0; i < count; i += 16) {
    const int left = count - i;
    const auto valid = static_cast<__mmask16>(left < 16 ? (1 << left) - 1 : 0xffff);
    const __m512i keys = _mm512_and_si512(_mm512_maskz_loadu_epi32(valid, elements + i), magnitude);
    const __mmask16 is_below = _mm512_mask_cmplt_epu32_mask(valid, keys, lows);
    const __mmask16 is_above = _mm512_mask_cmpge_epu32_mask(valid, keys, highs);
    const auto is_inside = static_cast<__mmask16>(valid & ~(is_below | is_above));
    below += __builtin_popcount(is_below);
    above += __builtin_popcount(is_above);
    const __m512 value = _mm512_castsi512_ps(_mm512_maskz_mov_epi32(is_above, keys));
    const __m512d first = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
    const __m512d second = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
    sum0 = _mm512_fmadd_pd(first, first, sum0);
    sum1 = _mm512_fmadd_pd(second, second, sum1);
    _mm512_storeu_si512(inside + found, _mm512_maskz_compress_epi32(is_inside, keys));
    found += __builtin_popcount(is_inside);
  }
  return {below, above, found, _mm512_reduce_add_pd(_mm512_add_pd(sum0, sum1))};
}
#endif

template <class Format>
Classified classify(const void* elements, int count, const Bracket& bracket, double scale,
                    void* inside) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  auto* keys = static_cast<Key*>(inside);
  const auto low = static_cast<Key>(bracket.low);
  const auto high = static_cast<Key>(bracket.high);
#if defined(__AVX512BW__)
  if constexpr (sizeof(Key) == 4) return classify_float32(data, count, low, high, keys);
#endif
  const Block<Format> block(data, count);
  const int below = block.count_below(low);
  return {below, count - block.count_below(high), block.compact(low, high, keys),
          block.sum_from(high, scale)};
}

template <class Format>
void mask(const void* elements, std::int64_t count, std::uint64_t threshold, std::uint8_t* kept) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  const auto bound = static_cast<Key>(threshold);
  for (std::int64_t i = 0; i < count; ++i) {
    kept[i] = static_cast<Key>(data[i] & Format::magnitude_mask) < bound ? 0 : 1;
  }
}

template <class Format>
void zero(void* elements, std::int64_t count, std::uint64_t threshold) {
  using Key = typename Format::Storage;
  auto* data = static_cast<Key*>(elements);
  const auto bound = static_cast<Key>(threshold);
  for (std::int64_t i = 0; i < count; ++i) {
    data[i] = static_cast<Key>(data[i] & Format::magnitude_mask) < bound ? Key{0} : data[i];
  }
}

template <class Format>
constexpr Kernels kernels_of() {
  return {classify<Format>, mask<Format>, zero<Format>};
}

}  // namespace

// By Dtype.
extern const Kernels table[];
const Kernels table[] = {
    kernels_of<Float32>(), kernels_of<Float16>(),      kernels_of<BFloat16>(),
    kernels_of<Float64>(), kernels_of<Float8E4M3FN>(), kernels_of<Float8E5M2>(),
};

}  // namespace lampfast::cpu::LAMPFAST_ISA
