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
// As many keys as fit a register, zero-extended to 32 bits where they are narrower.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 16;
  using Mask = __mmask16;

  static __m512i load(Mask valid, const typename Format::Storage* elements) {
    const __m512i magnitude = _mm512_set1_epi32(static_cast<int>(Format::magnitude_mask));
    __m512i bits;
    if constexpr (KeyBytes == 4) {
      bits = _mm512_maskz_loadu_epi32(valid, elements);
    } else if constexpr (KeyBytes == 2) {
      bits = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(valid, elements));
    } else {
      bits = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(valid, elements));
    }
    return _mm512_and_si512(bits, magnitude);
  }

  static __m512i all(typename Format::Storage key) {
    return _mm512_set1_epi32(static_cast<int>(key));
  }
  static Mask less(Mask valid, __m512i a, __m512i b) {
    return _mm512_mask_cmplt_epu32_mask(valid, a, b);
  }
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

  static void add_squares(Mask chosen, __m512i keys, double, __m512d (&sums)[2]) {
    const __m512i bits = _mm512_maskz_mov_epi32(chosen, keys);
    const __m512i widened = _mm512_slli_epi32(bits, 23 - Format::mantissa_bits);
    __m512 value = _mm512_castsi512_ps(widened);
    if constexpr (Format::rebias != 1.0F) {
      value = _mm512_mul_ps(value, _mm512_set1_ps(Format::rebias));
    }
    const __m512d half[2] = {_mm512_cvtps_pd(_mm512_castps512_ps256(value)),
                             _mm512_cvtps_pd(_mm512_extractf32x8_ps(value, 1))};
    for (int i = 0; i < 2; ++i) sums[i] = _mm512_fmadd_pd(half[i], half[i], sums[i]);
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 8;
  using Mask = __mmask8;

  static __m512i load(Mask valid, const std::uint64_t* elements) {
    return _mm512_and_si512(_mm512_maskz_loadu_epi64(valid, elements), all(Format::magnitude_mask));
  }
  static __m512i all(std::uint64_t key) {
    return _mm512_set1_epi64(static_cast<std::int64_t>(key));
  }
  static Mask less(Mask valid, __m512i a, __m512i b) {
    return _mm512_mask_cmplt_epu64_mask(valid, a, b);
  }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epu64(a, b); }
  static void compress(Mask chosen, __m512i keys, std::uint64_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(chosen, keys));
  }
  static void add_squares(Mask chosen, __m512i keys, double scale, __m512d (&sums)[2]) {
    const __m512d value = _mm512_mul_pd(_mm512_castsi512_pd(_mm512_maskz_mov_epi64(chosen, keys)),
                                        _mm512_set1_pd(scale));
    sums[0] = _mm512_fmadd_pd(value, value, sums[0]);
  }
};

// One pass, with the keys inside compressed in registers.
template <class Format>
Classified classify_in_registers(const typename Format::Storage* elements, int count,
                                 typename Format::Storage low, typename Format::Storage high,
                                 double scale, typename Format::Storage* inside,
                                 std::uint8_t* kept) {
  using Keys = Register<Format>;
  using Mask = typename Keys::Mask;
  constexpr int unit = 64;  // elements, as the mask's bytes fill a register
  const __m512i lows = Keys::all(low);
  const __m512i highs = Keys::all(high);
  __m512d sums[2] = {_mm512_setzero_pd(), _mm512_setzero_pd()};
  __m512i largest = _mm512_setzero_si512();
  int below = 0;
  int above = 0;
  int found = 0;
  for (int i = 0; i < count; i += unit) {
    const std::uint64_t valid =
        count - i >= unit ? ~std::uint64_t{0} : (std::uint64_t{1} << (count - i)) - 1;
    std::uint64_t unit_below = 0;
    std::uint64_t unit_inside = 0;
    for (int j = 0; j < unit; j += Keys::lanes) {
      const auto in_use = static_cast<Mask>(valid >> j);
      const __m512i keys = Keys::load(in_use, elements + i + j);
      const Mask is_below = Keys::less(in_use, keys, lows);
      const auto is_inside = static_cast<Mask>(Keys::less(in_use, keys, highs) & ~is_below);
      const auto is_above = static_cast<Mask>(in_use & ~(is_below | is_inside));
      Keys::add_squares(is_above, keys, scale, sums);
      largest = Keys::larger(largest, keys);
      Keys::compress(is_inside, keys, inside + found);
      found += __builtin_popcount(is_inside);
      unit_below |= std::uint64_t{is_below} << j;
      unit_inside |= std::uint64_t{is_inside} << j;
    }
    const std::uint64_t unit_above = valid & ~(unit_below | unit_inside);
    below += __builtin_popcountll(unit_below);
    above += __builtin_popcountll(unit_above);
    if (kept != nullptr) {
      const __m512i ones = _mm512_maskz_set1_epi8(unit_above, 1);
      const __m512i states =
          _mm512_mask_mov_epi8(ones, unit_inside, _mm512_set1_epi8(static_cast<char>(undecided)));
      _mm512_mask_storeu_epi8(kept + i, valid, states);
    }
  }
  // Not every narrow format's infinity and NaN become float32's when their bits are widened.
  const bool finite = Keys::less(static_cast<Mask>(~Mask{0}), largest,
                                 Keys::all(Format::not_finite)) == static_cast<Mask>(~Mask{0});
  const double sum = _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
  return {below, above, found, finite ? sum : std::numeric_limits<double>::quiet_NaN()};
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
// Completes 64 elements at once: compares as many candidates as are undecided, and deposits the
// answers where these are.
template <class Format>
std::int64_t settle_in_registers(std::uint8_t* kept, std::int64_t count,
                                 const typename Format::Storage* candidates,
                                 typename Format::Storage threshold) {
  using Keys = Register<Format>;
  using Mask = typename Keys::Mask;
  constexpr int unit = 64;
  const __m512i thresholds = Keys::all(threshold);
  std::int64_t settled = 0;
  for (std::int64_t i = 0; i < count; i += unit) {
    const std::uint64_t valid =
        count - i >= unit ? ~std::uint64_t{0} : (std::uint64_t{1} << (count - i)) - 1;
    const __m512i states = _mm512_maskz_loadu_epi8(valid, kept + i);
    const std::uint64_t open =
        _mm512_test_epi8_mask(states, _mm512_set1_epi8(static_cast<char>(undecided)));
    if (open == 0) continue;
    const int found = __builtin_popcountll(open);
    std::uint64_t stay = 0;
    for (int j = 0; j < found; j += Keys::lanes) {
      const __m512i keys = Keys::load(static_cast<Mask>(~Mask{0}), candidates + settled + j);
      const auto less = Keys::less(static_cast<Mask>(~Mask{0}), keys, thresholds);
      stay |= std::uint64_t{static_cast<Mask>(~less)} << j;
    }
    settled += found;
    const __m512i answers = _mm512_maskz_set1_epi8(_pdep_u64(stay, open), 1);
    _mm512_mask_storeu_epi8(kept + i, open, answers);
  }
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

double score_pairs_here(const Pair32* pairs, double after, float* scores) {
  constexpr int parts = 4;  // each addition waits for the one before it, so four chains of them
  constexpr int part = score_block / parts;
  double squares[score_block];
  double sums[score_block];
  for (int i = 0; i < score_block; ++i) {
    float magnitude;
    std::memcpy(&magnitude, &pairs[i].key, sizeof(magnitude));
    squares[i] = static_cast<double>(magnitude) * static_cast<double>(magnitude);
  }
  double chains[parts] = {};
  for (int i = part; i-- > 0;) {
    for (int p = 0; p < parts; ++p) sums[p * part + i] = chains[p] += squares[p * part + i];
  }
  double later = after;
  for (int p = parts; p-- > 0;) {
    for (int i = p * part; i < (p + 1) * part; ++i) {
      const double score = squares[i] / (later + sums[i]);
      scores[i] = squares[i] == 0.0 ? 0.0F : static_cast<float>(score);
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

extern const ScorePairs score_pairs;
const ScorePairs score_pairs = score_pairs_here;

// By Dtype.
extern const Kernels table[];
const Kernels table[] = {
    kernels_of<Float32>(), kernels_of<Float16>(),      kernels_of<BFloat16>(),
    kernels_of<Float64>(), kernels_of<Float8E4M3FN>(), kernels_of<Float8E5M2>(),
};

}  // namespace lampfast::cpu::LAMPFAST_ISA
