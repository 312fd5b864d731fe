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

  int compact(Key low, Key high, Key* inside, std::uint8_t* kept) const {
    alignas(64) std::uint8_t flags[classify_block];
    const auto width = static_cast<Key>(high - low);
    for (int i = 0; i < padded_; ++i) flags[i] = static_cast<Key>(keys_[i] - low) < width ? 1 : 0;
    if (kept != nullptr) {
      static_assert(undecided == 2);
      for (int i = 0; i < count_; ++i) {
        kept[i] = static_cast<std::uint8_t>((keys_[i] < low ? 0 : 1) + flags[i]);
      }
    }
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
// The elements whose mask bytes fill a register. Whole ones only: masked loads and stores take
// several times as long.
constexpr int unit = 64;

// Calls body(elements, valid) for each unit, `valid` having a bit for each of its elements. The
// last one may be a copy with zeros behind the valid elements.
template <class Key, class Body>
void for_each_unit(const Key* elements, std::int64_t count, Body&& body) {
  std::int64_t i = 0;
  for (; i + unit <= count; i += unit) body(i, elements + i, ~std::uint64_t{0});
  if (i == count) return;
  alignas(64) Key rest[unit] = {};
  std::memcpy(rest, elements + i, static_cast<std::size_t>(count - i) * sizeof(Key));
  body(i, static_cast<const Key*>(rest), (std::uint64_t{1} << (count - i)) - 1);
}

// Writes the mask bytes of a unit.
inline void store_kept(__m512i states, std::uint64_t valid, std::uint8_t* kept) {
  if (~valid == 0) {
    _mm512_storeu_si512(kept, states);
  } else {
    _mm512_mask_storeu_epi8(kept, valid, states);
  }
}

// As many keys as fit a register, zero-extended to 32 bits where they are narrower.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 16;
  using Mask = __mmask16;
  using Sums = __m512d[2];

  // Whether a sum of squares shows that an element is not finite. Not every narrow format's
  // infinity and NaN become float32's when their bits are widened.
  static constexpr bool sum_tells_not_finite = Format::rebias == 1.0F;

  static __m512i load(const typename Format::Storage* elements) {
    __m512i bits;
    if constexpr (KeyBytes == 4) {
      bits = _mm512_loadu_si512(elements);
    } else if constexpr (KeyBytes == 2) {
      bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements)));
    } else {
      bits = _mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(elements)));
    }
    return _mm512_and_si512(bits, all(Format::magnitude_mask));
  }

  static __m512i all(typename Format::Storage key) {
    return _mm512_set1_epi32(static_cast<int>(key));
  }
  static Mask less(__m512i a, __m512i b) { return _mm512_cmplt_epu32_mask(a, b); }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epu32(a, b); }

  // Writes whole registers; only the chosen keys, which come first, mean anything.
  static void compress(Mask chosen, __m512i keys, typename Format::Storage* to) {
    const __m512i first = _mm512_maskz_compress_epi32(chosen, keys);
    if constexpr (KeyBytes == 4) {
      _mm512_storeu_si512(to, first);
    } else if constexpr (KeyBytes == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(first));
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(first));
    }
  }

  static void add_squares(Mask chosen, const typename Format::Storage* elements, __m512i keys,
                          double, Sums& sums) {
    __m512d half[2];
    if constexpr (KeyBytes == 4) {
      const auto* values = reinterpret_cast<const float*>(elements);
      half[0] = _mm512_maskz_cvtps_pd(static_cast<__mmask8>(chosen), _mm256_loadu_ps(values));
      half[1] =
          _mm512_maskz_cvtps_pd(static_cast<__mmask8>(chosen >> 8), _mm256_loadu_ps(values + 8));
    } else {
      const __m512i bits = _mm512_maskz_mov_epi32(chosen, keys);
      __m512 value = _mm512_castsi512_ps(_mm512_slli_epi32(bits, 23 - Format::mantissa_bits));
      if constexpr (Format::rebias != 1.0F) {
        value = _mm512_mul_ps(value, _mm512_set1_ps(Format::rebias));
      }
      half[0] = _mm512_cvtps_pd(_mm512_castps512_ps256(value));
      half[1] = _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1));
    }
    for (int i = 0; i < 2; ++i) sums[i] = _mm512_fmadd_pd(half[i], half[i], sums[i]);
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 8;
  using Mask = __mmask8;
  using Sums = __m512d[2];
  static constexpr bool sum_tells_not_finite = true;

  static __m512i load(const std::uint64_t* elements) {
    return _mm512_and_si512(_mm512_loadu_si512(elements), all(Format::magnitude_mask));
  }
  static __m512i all(std::uint64_t key) {
    return _mm512_set1_epi64(static_cast<std::int64_t>(key));
  }
  static Mask less(__m512i a, __m512i b) { return _mm512_cmplt_epu64_mask(a, b); }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epu64(a, b); }
  static void compress(Mask chosen, __m512i keys, std::uint64_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(chosen, keys));
  }
  static void add_squares(Mask chosen, const std::uint64_t*, __m512i keys, double scale,
                          Sums& sums) {
    const __m512d value = _mm512_mul_pd(_mm512_castsi512_pd(_mm512_maskz_mov_epi64(chosen, keys)),
                                        _mm512_set1_pd(scale));
    sums[0] = _mm512_fmadd_pd(value, value, sums[0]);
  }
};

// Writes the magnitudes that are chosen from a unit, and perhaps some behind them; how many there
// are. Mostly these are few, so that two are written whether they are there or not.
template <class Format>
int compact(const typename Format::Storage* elements, std::uint64_t chosen,
            typename Format::Storage* to) {
  using Key = typename Format::Storage;
  using Keys = Register<Format>;
  constexpr int few = 8;
  const int found = __builtin_popcountll(chosen);
  if (found > few) {
    for (int j = 0; j < unit; j += Keys::lanes) {
      const auto here = static_cast<typename Keys::Mask>(chosen >> j);
      Keys::compress(here, Keys::load(elements + j), to);
      to += __builtin_popcount(here);
    }
    return found;
  }
  constexpr std::uint64_t last = std::uint64_t{1} << (unit - 1);
  const auto next = [&] {
    const Key element = elements[__builtin_ctzll(chosen | last)];
    chosen &= chosen - 1;
    return static_cast<Key>(element & Format::magnitude_mask);
  };
  to[0] = next();
  to[1] = next();
  for (int i = 2; i < found; ++i) to[i] = next();
  return found;
}

// One pass, with the keys in registers.
template <class Format>
Classified classify_in_registers(const typename Format::Storage* elements, int count,
                                 typename Format::Storage low, typename Format::Storage high,
                                 double scale, typename Format::Storage* inside,
                                 std::uint8_t* kept) {
  using Key = typename Format::Storage;
  using Keys = Register<Format>;
  const __m512i lows = Keys::all(low);
  const __m512i highs = Keys::all(high);
  // Several sums, so that an addition need not wait for the one before it.
  typename Keys::Sums sums[2] = {};
  __m512i largest = _mm512_setzero_si512();
  Classified result{};
  for_each_unit(elements, count, [&](std::int64_t i, const Key* here, std::uint64_t valid) {
    std::uint64_t below = 0;
    std::uint64_t above = 0;
    for (int j = 0; j < unit; j += Keys::lanes) {
      const __m512i keys = Keys::load(here + j);
      const auto is_below = Keys::less(keys, lows);
      const auto is_above = static_cast<typename Keys::Mask>(~Keys::less(keys, highs));
      Keys::add_squares(is_above, here + j, keys, scale, sums[j / Keys::lanes % 2]);
      if constexpr (!Keys::sum_tells_not_finite) largest = Keys::larger(largest, keys);
      below |= std::uint64_t{is_below} << j;
      above |= std::uint64_t{is_above} << j;
    }
    below &= valid;
    const std::uint64_t is_inside = valid & ~(below | above);
    result.below += __builtin_popcountll(below);
    result.above += __builtin_popcountll(above);
    result.inside += compact<Format>(here, is_inside, inside + result.inside);
    if (kept != nullptr) {
      const __m512i ones = _mm512_maskz_set1_epi8(above, 1);
      const __m512i open = _mm512_set1_epi8(static_cast<char>(undecided));
      store_kept(_mm512_mask_mov_epi8(ones, is_inside, open), valid, kept + i);
    }
  });
  __m512d sum = _mm512_add_pd(sums[0][0], sums[1][0]);
  sum = _mm512_add_pd(sum, _mm512_add_pd(sums[0][1], sums[1][1]));
  result.above_sum = _mm512_reduce_add_pd(sum);
  if constexpr (!Keys::sum_tells_not_finite) {
    const auto finite = Keys::less(largest, Keys::all(Format::not_finite));
    if (static_cast<typename Keys::Mask>(~finite) != 0) {
      result.above_sum = std::numeric_limits<double>::quiet_NaN();
    }
  }
  return result;
}
#endif

template <class Format>
Classified classify(const void* elements, int count, const Bracket& bracket, double scale,
                    void* inside, std::uint8_t* kept) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  auto* keys = static_cast<Key*>(inside);
  const auto low = static_cast<Key>(bracket.low);
  const auto high = static_cast<Key>(bracket.high);
#if defined(__AVX512BW__)
  return classify_in_registers<Format>(data, count, low, high, scale, keys, kept);
#else
  const Block<Format> block(data, count);
  const int below = block.count_below(low);
  return {below, count - block.count_below(high), block.compact(low, high, keys, kept),
          block.sum_from(high, scale)};
#endif
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

#if defined(__AVX512BW__)
// Completes a unit at once: compares as many candidates as are undecided, and deposits the answers
// where these are.
template <class Format>
std::int64_t settle_in_registers(std::uint8_t* kept, std::int64_t count,
                                 const typename Format::Storage* candidates,
                                 typename Format::Storage threshold) {
  using Keys = Register<Format>;
  const __m512i thresholds = Keys::all(threshold);
  std::int64_t settled = 0;
  for_each_unit(kept, count, [&](std::int64_t i, const std::uint8_t* here, std::uint64_t valid) {
    const __m512i states = _mm512_loadu_si512(here);
    const std::uint64_t open =
        _mm512_test_epi8_mask(states, _mm512_set1_epi8(static_cast<char>(undecided)));
    if (open == 0) return;
    const int found = __builtin_popcountll(open);
    std::uint64_t stay = 0;
    for (int j = 0; j < found; j += Keys::lanes) {
      const auto less = Keys::less(Keys::load(candidates + settled + j), thresholds);
      stay |= std::uint64_t{static_cast<typename Keys::Mask>(~less)} << j;
    }
    settled += found;
    const __m512i answers = _mm512_maskz_set1_epi8(_pdep_u64(stay, open), 1);
    store_kept(_mm512_mask_mov_epi8(states, open, answers), valid, kept + i);
  });
  return settled;
}
#endif

template <class Format>
std::int64_t settle(std::uint8_t* kept, std::int64_t count, const void* candidates,
                    std::uint64_t threshold) {
  using Key = typename Format::Storage;
  const auto* keys = static_cast<const Key*>(candidates);
  const auto bound = static_cast<Key>(threshold);
#if defined(__AVX512BW__)
  return settle_in_registers<Format>(kept, count, keys, bound);
#else
  constexpr std::int64_t word = sizeof(std::uint64_t);
  constexpr std::uint64_t undecided_bits = 0x0101010101010101 * undecided;
  std::int64_t settled = 0;
  for (std::int64_t i = 0; i < count; i += word) {
    if (count - i >= word) {
      std::uint64_t states;
      std::memcpy(&states, kept + i, sizeof(states));
      if ((states & undecided_bits) == 0) continue;
    }
    const std::int64_t end = count - i < word ? count : i + word;
    for (std::int64_t j = i; j < end; ++j) {
      const bool open = kept[j] == undecided;
      const auto answer = static_cast<std::uint8_t>(keys[settled] < bound ? 0 : 1);
      kept[j] = open ? answer : kept[j];
      settled += open;
    }
  }
  return settled;
#endif
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
std::uint64_t largest(const void* elements, std::int64_t count) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  Key most = 0;
  for (std::int64_t i = 0; i < count; ++i) {
    const auto key = static_cast<Key>(data[i] & Format::magnitude_mask);
    most = key > most ? key : most;
  }
  return most;
}

template <class Format>
std::int64_t count_equal(const void* elements, std::int64_t count, std::uint64_t wanted) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  const auto key = static_cast<Key>(wanted);
  constexpr std::int64_t most = std::numeric_limits<Key>::max() < 4096 ? 128 : 4096;
  std::int64_t total = 0;
  for (std::int64_t begin = 0; begin < count; begin += most) {
    // Counted in the key's own type, so that a register of keys makes a register of counts.
    const std::int64_t end = count - begin < most ? count : begin + most;
    Key equal = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      equal = static_cast<Key>(equal + (static_cast<Key>(data[i] & Format::magnitude_mask) == key));
    }
    total += static_cast<std::int64_t>(equal);
  }
  return total;
}

double score_keys_here(const std::uint32_t* keys, double after, float* scores) {
  constexpr int parts = 4;  // each addition waits for the one before it, so four chains of them
  constexpr int part = score_block / parts;
  double squares[score_block];
  double sums[score_block];
  for (int i = 0; i < score_block; ++i) {
    float magnitude;
    std::memcpy(&magnitude, &keys[i], sizeof(magnitude));
    squares[i] = static_cast<double>(magnitude) * static_cast<double>(magnitude);
  }
  double chains[parts] = {};
  for (int i = part; i-- > 0;) {
    for (int p = 0; p < parts; ++p) sums[p * part + i] = chains[p] += squares[p * part + i];
  }
  double later = after;
  for (int p = parts; p-- > 0;) {
    for (int i = p * part; i < (p + 1) * part; ++i) {
      // Zeros are divided by one rather than left out: a loop with a branch is not vectorised.
      const double sum = later + sums[i];
      scores[i] = static_cast<float>(squares[i] / (sum > 0.0 ? sum : 1.0));
    }
    later += chains[p];
  }
  return ((chains[3] + chains[2]) + chains[1]) + chains[0];
}

template <class Format>
constexpr Kernels kernels_of() {
  return {classify<Format>, mask<Format>,    settle<Format>,
          zero<Format>,     largest<Format>, count_equal<Format>};
}

}  // namespace

extern const ScoreKeys score_keys;
const ScoreKeys score_keys = score_keys_here;

// By Dtype.
extern const Kernels table[];
const Kernels table[] = {
    kernels_of<Float32>(), kernels_of<Float16>(),      kernels_of<BFloat16>(),
    kernels_of<Float64>(), kernels_of<Float8E4M3FN>(), kernels_of<Float8E5M2>(),
};

}  // namespace lampfast::cpu::LAMPFAST_ISA
