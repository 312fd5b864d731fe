// Keys in the registers of AVX-512. Included by kernels.inl, in its namespace.

// All but the last unit are loaded and stored as whole registers: masked loads and stores take
// several times as long.

// Writes the mask bytes of a unit.
inline void store_states(__m512i states, std::uint64_t valid, std::uint8_t* kept) {
  if (~valid == 0) {
    _mm512_storeu_si512(kept, states);
  } else {
    _mm512_mask_storeu_epi8(kept, valid, states);
  }
}

inline void store_kept(std::uint64_t above, std::uint64_t inside, std::uint64_t valid,
                       std::uint8_t* kept) {
  const __m512i ones = _mm512_maskz_set1_epi8(above, 1);
  const __m512i open = _mm512_set1_epi8(static_cast<char>(undecided));
  store_states(_mm512_mask_mov_epi8(ones, inside, open), valid, kept);
}

// Unsigned integers of so many bytes in the lanes of a register; comparisons give a bit for each.
template <std::size_t Bytes>
struct Integers {
  static __m512i all(std::uint64_t value) {
    if constexpr (Bytes == 1) return _mm512_set1_epi8(static_cast<char>(value));
    if constexpr (Bytes == 2) return _mm512_set1_epi16(static_cast<short>(value));
    if constexpr (Bytes == 4) return _mm512_set1_epi32(static_cast<int>(value));
    if constexpr (Bytes == 8) return _mm512_set1_epi64(static_cast<std::int64_t>(value));
  }
  static std::uint64_t less(__m512i a, __m512i b) {
    if constexpr (Bytes == 1) return _mm512_cmplt_epu8_mask(a, b);
    if constexpr (Bytes == 2) return _mm512_cmplt_epu16_mask(a, b);
    if constexpr (Bytes == 4) return _mm512_cmplt_epu32_mask(a, b);
    if constexpr (Bytes == 8) return _mm512_cmplt_epu64_mask(a, b);
  }
  static std::uint64_t at_least(__m512i a, __m512i b) {
    if constexpr (Bytes == 1) return _mm512_cmpge_epu8_mask(a, b);
    if constexpr (Bytes == 2) return _mm512_cmpge_epu16_mask(a, b);
    if constexpr (Bytes == 4) return _mm512_cmpge_epu32_mask(a, b);
    if constexpr (Bytes == 8) return _mm512_cmpge_epu64_mask(a, b);
  }
  static __m512i choose(std::uint64_t chosen, __m512i from) {
    if constexpr (Bytes == 1) return _mm512_maskz_mov_epi8(chosen, from);
    if constexpr (Bytes == 2) return _mm512_maskz_mov_epi16(static_cast<__mmask32>(chosen), from);
    if constexpr (Bytes == 4) return _mm512_maskz_mov_epi32(static_cast<__mmask16>(chosen), from);
    if constexpr (Bytes == 8) return _mm512_maskz_mov_epi64(static_cast<__mmask8>(chosen), from);
  }
};

// Classifies units of one block.
template <class Format>
class Classifier {
 public:
  using Key = typename Format::Storage;

  Classifier(Key low, Key high, double scale)
      : lows_(Lanes::all(low)), highs_(Lanes::all(high)), scale_(_mm512_set1_pd(scale)) {}

  // Returns a bit for each element inside the interval; writes the mask bytes, unless `kept` is
  // null. Only valid elements count.
  std::uint64_t classify(const Key* elements, std::uint64_t valid, std::uint8_t* kept) {
    const __m512i magnitudes = Lanes::all(Format::magnitude_mask);
    std::uint64_t below = 0;
    std::uint64_t above = 0;
    for (int j = 0; j < unit; j += lanes) {
      const __m512i keys = _mm512_and_si512(_mm512_loadu_si512(elements + j), magnitudes);
      const std::uint64_t is_above = Lanes::at_least(keys, highs_);
      below |= Lanes::less(keys, lows_) << j;
      above |= is_above << j;
      add_squares(is_above, elements + j, keys);
    }
    const std::uint64_t inside = valid & ~above & ~below;
    below_ += __builtin_popcountll(valid & below);
    above_ += __builtin_popcountll(valid & above);
    if (kept != nullptr) store_kept(above, inside, valid, kept);
    return inside;
  }

  // What the units had, of so many valid elements and so many inside.
  Classified result(const Key*, int, int inside) const {
    return {below_, above_, inside, above_sum()};
  }

 private:
  using Lanes = Integers<sizeof(Key)>;
  static constexpr bool is_byte = sizeof(Key) == 1;
  static constexpr int lanes = 64 / static_cast<int>(sizeof(Key));
  // See registers_avx2.inl.
  static constexpr float rebias_from_float16 = is_byte ? Format::rebias / Float16::rebias : 1.0F;
  static constexpr bool sum_tells_not_finite = rebias_from_float16 == 1.0F;

  // Of the chosen elements of a register.
  void add_squares(std::uint64_t chosen, const Key* elements, __m512i keys) {
    if constexpr (sizeof(Key) == 8) {
      const __m512d values =
          _mm512_mul_pd(_mm512_castsi512_pd(Lanes::choose(chosen, keys)), scale_);
      sums_[0] = _mm512_fmadd_pd(values, values, sums_[0]);
    } else if constexpr (sizeof(Key) == 4) {
      const auto* values = reinterpret_cast<const float*>(elements);
      add(_mm512_maskz_cvtps_pd(static_cast<__mmask8>(chosen), _mm256_loadu_ps(values)),
          _mm512_maskz_cvtps_pd(static_cast<__mmask8>(chosen >> 8), _mm256_loadu_ps(values + 8)));
    } else if constexpr (is_byte) {
      const __m512i bytes = Lanes::choose(chosen, keys);
      if constexpr (!sum_tells_not_finite) largest_ = _mm512_max_epu8(largest_, bytes);
      constexpr int shift = Float16::mantissa_bits - Format::mantissa_bits;
      const __m512i lower = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(bytes));
      const __m512i upper = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(bytes, 1));
      add_float16(_mm512_slli_epi16(lower, shift));
      add_float16(_mm512_slli_epi16(upper, shift));
    } else if constexpr (Format::mantissa_bits == Float16::mantissa_bits) {
      add_float16(Lanes::choose(chosen, keys));
    } else {
      // The upper half of a float32 is a bfloat16.
      const __m512i pairs = Lanes::choose(chosen, keys);
      const __m512i upper_halves = _mm512_set1_epi32(static_cast<int>(0xffff0000));
      add_floats(_mm512_castsi512_ps(_mm512_slli_epi32(pairs, 16)));
      add_floats(_mm512_castsi512_ps(_mm512_and_si512(pairs, upper_halves)));
    }
  }
  void add_float16(__m512i bits) {
    add_floats(_mm512_cvtph_ps(_mm512_castsi512_si256(bits)));
    add_floats(_mm512_cvtph_ps(_mm512_extracti64x4_epi64(bits, 1)));
  }
  void add_floats(__m512 values) {
    add(_mm512_cvtps_pd(_mm512_castps512_ps256(values)),
        _mm512_cvtps_pd(_mm512_extractf32x8_ps(values, 1)));
  }
  // The sums take turns, so that an addition need not wait for the one before it.
  void add(__m512d lower, __m512d upper) {
    const __m512d first = _mm512_fmadd_pd(lower, lower, sums_[0]);
    const __m512d second = _mm512_fmadd_pd(upper, upper, sums_[1]);
    sums_[0] = sums_[2];
    sums_[1] = sums_[3];
    sums_[2] = first;
    sums_[3] = second;
  }

  double above_sum() const {
    if constexpr (!sum_tells_not_finite) {
      if (_mm512_cmpge_epu8_mask(largest_, Lanes::all(Format::not_finite)) != 0) {
        return std::numeric_limits<double>::quiet_NaN();
      }
    }
    constexpr double factor = rebias_from_float16;
    const __m512d lower = _mm512_add_pd(sums_[0], sums_[1]);
    const __m512d upper = _mm512_add_pd(sums_[2], sums_[3]);
    return _mm512_reduce_add_pd(_mm512_add_pd(lower, upper)) * (factor * factor);
  }

  __m512i lows_;
  __m512i highs_;
  __m512d scale_;
  int below_ = 0;
  int above_ = 0;
  __m512i largest_ = _mm512_setzero_si512();
  __m512d sums_[4] = {};
};

// As many keys as fit a register, zero-extended to 32 bits if they are narrower.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 16;
  static constexpr bool can_compress = true;
  using Flags = __mmask16;

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
  static Flags less(__m512i a, __m512i b) { return _mm512_cmplt_epu32_mask(a, b); }
  static std::uint64_t bits(Flags flags) { return flags; }

  // Moves the chosen keys to the front. Whole registers are written: what is behind the chosen keys
  // means nothing.
  static void compress(Flags chosen, __m512i keys, typename Format::Storage* to) {
    const __m512i first = _mm512_maskz_compress_epi32(chosen, keys);
    if constexpr (KeyBytes == 4) {
      _mm512_storeu_si512(to, first);
    } else if constexpr (KeyBytes == 2) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(first));
    } else {
      _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm512_cvtepi32_epi8(first));
    }
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 8;
  static constexpr bool can_compress = true;
  using Flags = __mmask8;

  static __m512i load(const std::uint64_t* elements) {
    return _mm512_and_si512(_mm512_loadu_si512(elements), all(Format::magnitude_mask));
  }
  static __m512i all(std::uint64_t key) {
    return _mm512_set1_epi64(static_cast<std::int64_t>(key));
  }
  static Flags less(__m512i a, __m512i b) { return _mm512_cmplt_epu64_mask(a, b); }
  static std::uint64_t bits(Flags flags) { return flags; }
  static void compress(Flags chosen, __m512i keys, std::uint64_t* to) {
    _mm512_storeu_si512(to, _mm512_maskz_compress_epi64(chosen, keys));
  }
};

// Zeroes the elements of a unit whose bits are clear. Whole registers are stored: on some
// processors a masked store takes many times as long.
template <class Key>
void zero_cleared(Key* elements, std::uint64_t bits) {
  constexpr int lanes = 64 / static_cast<int>(sizeof(Key));
  for (int j = 0; j < unit; j += lanes) {
    const __m512i all = _mm512_loadu_si512(elements + j);
    __m512i kept;
    if constexpr (sizeof(Key) == 1) {
      kept = _mm512_maskz_mov_epi8(bits, all);
    } else if constexpr (sizeof(Key) == 2) {
      kept = _mm512_maskz_mov_epi16(static_cast<__mmask32>(bits >> j), all);
    } else if constexpr (sizeof(Key) == 4) {
      kept = _mm512_maskz_mov_epi32(static_cast<__mmask16>(bits >> j), all);
    } else {
      kept = _mm512_maskz_mov_epi64(static_cast<__mmask8>(bits >> j), all);
    }
    _mm512_storeu_si512(elements + j, kept);
  }
}

// A bit for each undecided element of a unit, given its mask bytes.
inline std::uint64_t open_places(const std::uint8_t* states) {
  return _mm512_test_epi8_mask(_mm512_loadu_si512(states),
                               _mm512_set1_epi8(static_cast<char>(undecided)));
}

// Completes a unit at once: compares one candidate for each undecided element, then deposits the
// results at these elements.
template <class Format>
void settle_unit(const std::uint8_t* states, std::uint64_t open,
                 const typename Format::Storage* candidates, typename Format::Storage threshold,
                 std::uint64_t valid, std::uint8_t* kept) {
  using Keys = Register<Format>;
  const __m512i thresholds = Keys::all(threshold);
  const int found = __builtin_popcountll(open);
  std::uint64_t pruned = 0;
  for (int j = 0; j < found; j += Keys::lanes) {
    pruned |= Keys::bits(Keys::less(Keys::load(candidates + j), thresholds)) << j;
  }
  const __m512i answers = _mm512_maskz_set1_epi8(_pdep_u64(~pruned, open), 1);
  store_states(_mm512_mask_mov_epi8(_mm512_loadu_si512(states), open, answers), valid, kept);
}
