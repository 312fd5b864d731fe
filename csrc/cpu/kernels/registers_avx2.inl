// Keys in the registers of AVX2. Included by kernels.inl, in its namespace.

// How many elements are processed at a time: as many as a word has bits.
constexpr int unit = 64;

// Bytes that have the value where the word has a set bit, and are 0 elsewhere.
inline __m256i bytes_where(std::uint32_t word, std::uint8_t value) {
  // Each byte of the word is spread over eight lanes, and each of these looks at a bit of its own.
  const __m256i spread = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1,  //
                                          2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
  const __m256i lane_bits = _mm256_set1_epi64x(static_cast<std::int64_t>(0x8040201008040201));
  const __m256i bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(static_cast<int>(word)), spread);
  const __m256i is_set = _mm256_cmpeq_epi8(_mm256_and_si256(bytes, lane_bits), lane_bits);
  return _mm256_and_si256(is_set, _mm256_set1_epi8(static_cast<char>(value)));
}

// Writes the mask bytes of a unit.
inline void store_kept(std::uint64_t above, std::uint64_t inside, std::uint64_t valid,
                       std::uint8_t* kept) {
  alignas(32) std::uint8_t states[unit];
  std::uint8_t* to = ~valid == 0 ? kept : states;
  for (int half = 0; half < unit; half += 32) {
    const __m256i ones = bytes_where(static_cast<std::uint32_t>(above >> half), 1);
    const __m256i open = bytes_where(static_cast<std::uint32_t>(inside >> half), undecided);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + half), _mm256_or_si256(ones, open));
  }
  if (to != kept) {
    std::memcpy(kept, states, static_cast<std::size_t>(__builtin_popcountll(valid)));
  }
}

// As many keys as fit a register, zero-extended to 32 bits if they are narrower. A key has no sign
// bit, so signed comparisons serve.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 8;
  static constexpr bool can_compress = false;
  using Flags = __m256i;
  using Sums = __m256d[2];

  // See registers_avx512.inl.
  static constexpr bool sum_tells_not_finite = Format::rebias == 1.0F;

  static __m256i load(const typename Format::Storage* elements) {
    __m256i bits;
    if constexpr (KeyBytes == 4) {
      bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements));
    } else if constexpr (KeyBytes == 2) {
      bits = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(elements)));
    } else {
      bits = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(elements)));
    }
    return _mm256_and_si256(bits, all(Format::magnitude_mask));
  }

  static __m256i all(typename Format::Storage key) {
    return _mm256_set1_epi32(static_cast<int>(key));
  }
  static Flags less(__m256i a, __m256i b) { return _mm256_cmpgt_epi32(b, a); }
  static std::uint64_t bits(Flags flags) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(flags)));
  }
  static __m256i larger(__m256i a, __m256i b) { return _mm256_max_epu32(a, b); }

  static void add_squares_unless(Flags left_out, const typename Format::Storage*, __m256i keys,
                                 double, Sums& sums) {
    const __m256i chosen = _mm256_andnot_si256(left_out, keys);
    __m256 value = _mm256_castsi256_ps(_mm256_slli_epi32(chosen, 23 - Format::mantissa_bits));
    if constexpr (Format::rebias != 1.0F) {
      value = _mm256_mul_ps(value, _mm256_set1_ps(Format::rebias));
    }
    const __m256d half[2] = {_mm256_cvtps_pd(_mm256_castps256_ps128(value)),
                             _mm256_cvtps_pd(_mm256_extractf128_ps(value, 1))};
    for (int i = 0; i < 2; ++i) {
      sums[i] = _mm256_add_pd(sums[i], _mm256_mul_pd(half[i], half[i]));
    }
  }
  static double total(const Sums& sums) {
    const __m256d both = _mm256_add_pd(sums[0], sums[1]);
    return (both[0] + both[1]) + (both[2] + both[3]);
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 4;
  static constexpr bool can_compress = false;
  using Flags = __m256i;
  using Sums = __m256d[1];
  static constexpr bool sum_tells_not_finite = true;

  static __m256i load(const std::uint64_t* elements) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements));
    return _mm256_and_si256(bits, all(Format::magnitude_mask));
  }
  static __m256i all(std::uint64_t key) {
    return _mm256_set1_epi64x(static_cast<std::int64_t>(key));
  }
  static Flags less(__m256i a, __m256i b) { return _mm256_cmpgt_epi64(b, a); }
  static std::uint64_t bits(Flags flags) {
    return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(flags)));
  }
  static void add_squares_unless(Flags left_out, const std::uint64_t*, __m256i keys, double scale,
                                 Sums& sums) {
    const __m256i chosen = _mm256_andnot_si256(left_out, keys);
    const __m256d value = _mm256_mul_pd(_mm256_castsi256_pd(chosen), _mm256_set1_pd(scale));
    sums[0] = _mm256_add_pd(sums[0], _mm256_mul_pd(value, value));
  }
  static double total(const Sums& sums) {
    const __m256d sum = sums[0];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
  }
};

// All ones in the lanes, each as wide as a key, that have a set bit.
template <class Key>
__m256i lanes_where(std::uint64_t bits) {
  if constexpr (sizeof(Key) == 1) {
    return bytes_where(static_cast<std::uint32_t>(bits), 0xff);
  } else if constexpr (sizeof(Key) == 2) {
    const __m256i lane_bits = _mm256_setr_epi16(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048,
                                                4096, 8192, 16384, static_cast<short>(32768));
    const __m256i word_bits = _mm256_set1_epi16(static_cast<short>(bits));
    return _mm256_cmpeq_epi16(_mm256_and_si256(word_bits, lane_bits), lane_bits);
  } else if constexpr (sizeof(Key) == 4) {
    const __m256i lane_bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i word_bits = _mm256_set1_epi32(static_cast<int>(bits));
    return _mm256_cmpeq_epi32(_mm256_and_si256(word_bits, lane_bits), lane_bits);
  } else {
    const __m256i lane_bits = _mm256_setr_epi64x(1, 2, 4, 8);
    const __m256i word_bits = _mm256_set1_epi64x(static_cast<std::int64_t>(bits));
    return _mm256_cmpeq_epi64(_mm256_and_si256(word_bits, lane_bits), lane_bits);
  }
}

// Zeroes the elements of a unit whose bits are clear.
template <class Key>
void zero_cleared(Key* elements, std::uint64_t bits) {
  constexpr int lanes = 32 / static_cast<int>(sizeof(Key));
  for (int j = 0; j < unit; j += lanes) {
    auto* const here = reinterpret_cast<__m256i*>(elements + j);
    const __m256i kept = lanes_where<Key>(bits >> j);
    _mm256_storeu_si256(here, _mm256_and_si256(_mm256_loadu_si256(here), kept));
  }
}

// A bit for each undecided element of a unit, given its mask bytes.
inline std::uint64_t open_places(const std::uint8_t* states) {
  static_assert(undecided == 2);
  std::uint64_t open = 0;
  for (int half = 0; half < unit; half += 32) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(states + half));
    const int second_bits = _mm256_movemask_epi8(_mm256_slli_epi16(bytes, 6));
    open |= std::uint64_t{static_cast<std::uint32_t>(second_bits)} << half;
  }
  return open;
}

// Completes a unit: compares one candidate for each undecided element.
template <class Format>
void settle_unit(const std::uint8_t*, std::uint64_t open,
                 const typename Format::Storage* candidates, typename Format::Storage threshold,
                 std::uint64_t, std::uint8_t* kept) {
  for (; open != 0; open &= open - 1) {
    kept[__builtin_ctzll(open)] = *candidates++ < threshold ? 0 : 1;
  }
}
