// Keys in the registers of AVX-512. Included by kernels.inl, in its namespace.

// How many elements are processed at a time: those whose mask bytes fill a register. All but the
// last unit are loaded and stored as whole registers: masked loads and stores take several times as
// long.
constexpr int unit = 64;

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

// As many keys as fit a register, zero-extended to 32 bits if they are narrower.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 16;
  static constexpr bool can_compress = true;
  using Flags = __mmask16;
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
  static Flags less(__m512i a, __m512i b) { return _mm512_cmplt_epu32_mask(a, b); }
  static std::uint64_t bits(Flags flags) { return flags; }
  static __m512i larger(__m512i a, __m512i b) { return _mm512_max_epu32(a, b); }

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

  static void add_squares_unless(Flags left_out, const typename Format::Storage* elements,
                                 __m512i keys, double, Sums& sums) {
    const auto chosen = static_cast<Flags>(~left_out);
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
  static double total(const Sums& sums) {
    return _mm512_reduce_add_pd(_mm512_add_pd(sums[0], sums[1]));
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 8;
  static constexpr bool can_compress = true;
  using Flags = __mmask8;
  using Sums = __m512d[1];
  static constexpr bool sum_tells_not_finite = true;

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
  static void add_squares_unless(Flags left_out, const std::uint64_t*, __m512i keys, double scale,
                                 Sums& sums) {
    const __m512i chosen = _mm512_maskz_mov_epi64(static_cast<Flags>(~left_out), keys);
    const __m512d value = _mm512_mul_pd(_mm512_castsi512_pd(chosen), _mm512_set1_pd(scale));
    sums[0] = _mm512_fmadd_pd(value, value, sums[0]);
  }
  static double total(const Sums& sums) { return _mm512_reduce_add_pd(sums[0]); }
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
