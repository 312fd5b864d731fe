// Keys in the registers of AVX2. Included by kernels.inl, in its namespace.

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
inline void store_states(const __m256i* states, std::uint64_t valid, std::uint8_t* kept) {
  alignas(32) std::uint8_t copy[unit];
  std::uint8_t* const to = ~valid == 0 ? kept : copy;
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), states[0]);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + 32), states[1]);
  if (to != kept) std::memcpy(kept, copy, static_cast<std::size_t>(__builtin_popcountll(valid)));
}

// A bit for each byte that is undecided.
inline std::uint64_t open_bits(__m256i states) {
  static_assert(undecided == 2);
  return static_cast<std::uint32_t>(_mm256_movemask_epi8(_mm256_slli_epi16(states, 6)));
}

// Integers of so many bytes in the lanes of a register. A key has no sign bit, so signed
// comparisons serve.
template <std::size_t Bytes>
struct Integers {
  static __m256i all(std::int64_t value) {
    if constexpr (Bytes == 1) return _mm256_set1_epi8(static_cast<char>(value));
    if constexpr (Bytes == 2) return _mm256_set1_epi16(static_cast<short>(value));
    if constexpr (Bytes == 4) return _mm256_set1_epi32(static_cast<int>(value));
    if constexpr (Bytes == 8) return _mm256_set1_epi64x(value);
  }
  static __m256i greater(__m256i a, __m256i b) {
    if constexpr (Bytes == 1) return _mm256_cmpgt_epi8(a, b);
    if constexpr (Bytes == 2) return _mm256_cmpgt_epi16(a, b);
    if constexpr (Bytes == 4) return _mm256_cmpgt_epi32(a, b);
    if constexpr (Bytes == 8) return _mm256_cmpgt_epi64(a, b);
  }
  // The small numbers in as many registers as an integer has bytes, as bytes.
  static __m256i pack(const __m256i* from) {
    if constexpr (Bytes == 1) return from[0];
    if constexpr (Bytes == 2) return _mm256_packs_epi16(from[0], from[1]);
    if constexpr (Bytes == 4) return pack_words(from);
    if constexpr (Bytes == 8) {
      __m256i words[4];
      for (int i = 0; i < 4; ++i) {
        words[i] = _mm256_castps_si256(_mm256_shuffle_ps(
            _mm256_castsi256_ps(from[2 * i]), _mm256_castsi256_ps(from[2 * i + 1]), 0x88));
      }
      return pack_words(words);
    }
  }
  // Packed bytes in the order of the elements.
  static __m256i in_order(__m256i bytes) {
    if constexpr (Bytes == 1) return bytes;
    if constexpr (Bytes == 2) return _mm256_permute4x64_epi64(bytes, 0xd8);
    if constexpr (Bytes == 4) {
      const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
      return _mm256_permutevar8x32_epi32(bytes, order);
    }
    if constexpr (Bytes == 8) {
      // Two elements from the lower half of a register, then two from its upper half.
      const __m128i lower = _mm256_castsi256_si128(bytes);
      const __m128i upper = _mm256_extracti128_si256(bytes, 1);
      return _mm256_set_m128i(_mm_unpackhi_epi16(lower, upper), _mm_unpacklo_epi16(lower, upper));
    }
  }

 private:
  static __m256i pack_words(const __m256i* words) {
    return _mm256_packs_epi16(_mm256_packs_epi32(words[0], words[1]),
                              _mm256_packs_epi32(words[2], words[3]));
  }
};

// Sums of squares in doubles.
class DoubleSums {
 public:
  DoubleSums() = default;
  explicit DoubleSums(std::uint64_t /*least*/) {}  // see Float32Sums

  // Squares of floats are exact in doubles, so that the fused operation rounds as two separate ones
  // do.
  [[gnu::always_inline]] void add(__m256 values) {
    // Through memory, since half a register takes two operations to widen and a load only one; the
    // empty statement hides from compilers that it is the same.
    alignas(32) float copy[8];
    _mm256_store_ps(copy, values);
    __asm__("" : "+m"(copy));
    const __m256d lower = _mm256_cvtps_pd(_mm_load_ps(copy));
    const __m256d upper = _mm256_cvtps_pd(_mm_load_ps(copy + 4));
    // The sums take turns, so that an addition need not wait for the one before it.
    const __m256d first = _mm256_fmadd_pd(lower, lower, sums_[0]);
    const __m256d second = _mm256_fmadd_pd(upper, upper, sums_[1]);
    sums_[0] = sums_[2];
    sums_[1] = sums_[3];
    sums_[2] = first;
    sums_[3] = second;
  }
  void add(__m256d values) { sums_[0] = _mm256_fmadd_pd(values, values, sums_[0]); }

  template <int i>
  void add_to(__m256 sums) {
    const __m256d lower = _mm256_cvtps_pd(_mm256_castps256_ps128(sums));
    const __m256d upper = _mm256_cvtps_pd(_mm256_extractf128_ps(sums, 1));
    sums_[i] = _mm256_add_pd(sums_[i], _mm256_add_pd(lower, upper));
  }

  [[gnu::always_inline]] double total() const {
    const __m256d sums =
        _mm256_add_pd(_mm256_add_pd(sums_[0], sums_[1]), _mm256_add_pd(sums_[2], sums_[3]));
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
  }

 private:
  __m256d sums_[4] = {};
};

// Sums of squares in float32, which take a third of the time that doubles take, and whether they
// are exact.
template <class Format>
class Float32Sums {
 public:
  // All keys are at least this.
  explicit Float32Sums(typename Format::Storage least) {
    const int field = least >> Format::mantissa_bits;
    const int exponent = (field > 0 ? field - 1 : 0) + Format::least_exponent;
    has_bound_ = exponent >= error_bounds::least_exponent_in_float32 &&
                 exponent <= error_bounds::most_exponent_in_float32;
    const int bound = has_bound_ ? 2 * exponent + error_bounds::float32_digits : 0;
    bound_ = _mm256_castsi256_ps(_mm256_set1_epi32((127 + bound) << 23));
  }

  void add(__m256 values) {
    const __m256 sum = _mm256_fmadd_ps(values, values, sums_[0]);
    sums_[0] = sums_[1];
    sums_[1] = sums_[2];
    sums_[2] = sums_[3];
    sums_[3] = sum;
  }

  // Moves the sums now and then, before they get too large.
  void end_unit() {
    constexpr int most_units = 8;
    if (++units_ % most_units == 0) move();
  }

  [[gnu::always_inline]] double total() {
    move();
    return moved_.total();
  }
  bool are_exact() const { return has_bound_ && _mm256_movemask_ps(are_exact_) == 0xff; }

 private:
  // No loops over sums, or compilers keep all of them in memory.
  [[gnu::always_inline]] void move() {
    move<0>();
    move<1>();
    move<2>();
    move<3>();
  }
  template <int i>
  [[gnu::always_inline]] void move() {
    moved_.template add_to<i>(sums_[i]);
    are_exact_ = _mm256_and_ps(are_exact_, _mm256_cmp_ps(sums_[i], bound_, _CMP_LT_OQ));
    sums_[i] = _mm256_setzero_ps();
  }

  bool has_bound_;
  __m256 bound_;  // of a sum that has certainly not been rounded (error_bounds.h)
  __m256 are_exact_ = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
  int units_ = 0;
  __m256 sums_[4] = {};
  DoubleSums moved_;
};

// Classifies units of one block.
template <class Format>
class Classifier {
 public:
  using Key = typename Format::Storage;

  Classifier(Key low, Key high, double scale)
      : before_low_(Lanes::all(static_cast<std::int64_t>(low) - 1)),
        before_high_(Lanes::all(static_cast<std::int64_t>(high) - 1)),
        scale_(_mm256_set1_pd(scale)),
        sums_(high) {}

  // Returns a bit for each element inside the interval; writes the mask bytes, unless `kept` is
  // null. Only valid elements count.
  [[gnu::always_inline]] std::uint64_t classify(const Key* elements, std::uint64_t valid,
                                                std::uint8_t* kept) {
    __m256i states[2] = {half(elements), half(elements + 32)};
    if (~valid != 0) {
      states[0] = _mm256_and_si256(states[0], bytes_where(static_cast<std::uint32_t>(valid), 0xff));
      states[1] =
          _mm256_and_si256(states[1], bytes_where(static_cast<std::uint32_t>(valid >> 32), 0xff));
    }
    static_assert(2 * undecided * (classify_block / unit + 1) < 256);
    state_sums_ = _mm256_add_epi8(state_sums_, _mm256_add_epi8(states[0], states[1]));
    if (kept != nullptr) store_states(states, valid, kept);
    if constexpr (has_short_squares) sums_.end_unit();
    return open_bits(states[0]) | open_bits(states[1]) << 32;
  }

  // What the units had: all of these elements, and so many of them inside.
  [[gnu::always_inline]] Classified result(const Key* elements, int count, int inside) {
    double sum = sums_.total();
    if constexpr (has_short_squares) {
      if (!sums_.are_exact()) sum = sum_in_doubles(elements, count, before_high_);
    }
    if constexpr (!sum_tells_not_finite) {
      const __m256i finite = _mm256_set1_epi8(static_cast<char>(Format::not_finite - 1));
      if (_mm256_movemask_epi8(_mm256_cmpgt_epi8(largest_, finite)) != 0) {
        sum = std::numeric_limits<double>::quiet_NaN();
      }
    }
    // Every element above the interval has added 1, and every one inside it 2.
    const __m256i sums = _mm256_sad_epu8(state_sums_, _mm256_setzero_si256());
    const std::int64_t states = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    const int above = static_cast<int>(states) - undecided * inside;
    constexpr double factor = rebias_from_float16;
    return {count - above - inside, above, inside, sum * (factor * factor)};
  }

 private:
  using Lanes = Integers<sizeof(Key)>;
  static constexpr bool is_byte = sizeof(Key) == 1;
  static constexpr int lanes = 32 / static_cast<int>(sizeof(Key));
  // A byte's bits, moved to the places that float16 has for them, stand for its value divided by
  // this.
  static constexpr float rebias_from_float16 = is_byte ? Format::rebias / Float16::rebias : 1.0F;
  // Whether a sum of squares shows that an element is not finite: unless the format's infinity and
  // NaN become finite numbers when its bits are moved.
  static constexpr bool sum_tells_not_finite = rebias_from_float16 == 1.0F;
  // Whether squares have so few digits that sums of many are exact in float32.
  static constexpr bool has_short_squares =
      sizeof(Key) == 2 && Format::mantissa_bits < Float16::mantissa_bits;
  using Sums = std::conditional_t<has_short_squares, Float32Sums<Format>, DoubleSums>;

  static __m256i load(const Key* elements) {
    const __m256i magnitudes = Lanes::all(static_cast<std::int64_t>(Format::magnitude_mask));
    return _mm256_and_si256(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements)),
                            magnitudes);
  }

  // The mask bytes of half a unit.
  [[gnu::always_inline]] __m256i half(const Key* elements) {
    __m256i from_low[sizeof(Key)];  // -1 where true
    __m256i above[sizeof(Key)];
    for (int i = 0; i < static_cast<int>(sizeof(Key)); ++i) {
      const __m256i keys = load(elements + i * lanes);
      from_low[i] = Lanes::greater(keys, before_low_);
      above[i] = Lanes::greater(keys, before_high_);
      const __m256i keys_above = _mm256_and_si256(keys, above[i]);
      if constexpr (sizeof(Key) == 8) {
        sums_.add(_mm256_mul_pd(_mm256_castsi256_pd(keys_above), scale_));
      } else {
        add_squares(sums_, keys_above);
      }
      if constexpr (!sum_tells_not_finite) largest_ = _mm256_max_epu8(largest_, keys_above);
    }
    static_assert(undecided == 2);
    const __m256i once = Lanes::pack(from_low);
    return Lanes::in_order(_mm256_sub_epi8(_mm256_sub_epi8(Lanes::pack(above), once), once));
  }

  // Of a register of keys.
  template <class AnySums>
  [[gnu::always_inline]] static void add_squares(AnySums& sums, __m256i keys) {
    if constexpr (sizeof(Key) == 4) {
      sums.add(_mm256_castsi256_ps(keys));
    } else if constexpr (is_byte) {
      constexpr int shift = Float16::mantissa_bits - Format::mantissa_bits;
      const __m256i lower = _mm256_cvtepu8_epi16(_mm256_castsi256_si128(keys));
      const __m256i upper = _mm256_cvtepu8_epi16(_mm256_extracti128_si256(keys, 1));
      add_float16(sums, _mm256_slli_epi16(lower, shift));
      add_float16(sums, _mm256_slli_epi16(upper, shift));
    } else if constexpr (Format::mantissa_bits == Float16::mantissa_bits) {
      add_float16(sums, keys);
    } else {
      // The upper half of a float32 is a bfloat16.
      const __m256i upper_half = _mm256_set1_epi32(static_cast<int>(0xffff0000));
      sums.add(_mm256_castsi256_ps(_mm256_slli_epi32(keys, 16)));
      sums.add(_mm256_castsi256_ps(_mm256_and_si256(keys, upper_half)));
    }
  }
  [[gnu::always_inline]] static void add_float16(DoubleSums& sums, __m256i bits) {
    sums.add(_mm256_cvtph_ps(_mm256_castsi256_si128(bits)));
    sums.add(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)));
  }

  // Where a sum in float32 may have been rounded. Not inlined, for the registers' sake.
  [[gnu::noinline]] static double sum_in_doubles(const Key* elements, int count,
                                                 __m256i before_high) {
    DoubleSums sums;
    for_each_unit(elements, count, [&](std::int64_t, const Key* here, std::uint64_t) {
      for (int i = 0; i < unit; i += lanes) {
        const __m256i keys = load(here + i);
        add_squares(sums, _mm256_and_si256(keys, Lanes::greater(keys, before_high)));
      }
    });
    return sums.total();
  }

  __m256i before_low_;
  __m256i before_high_;
  __m256d scale_;
  __m256i state_sums_ = _mm256_setzero_si256();
  __m256i largest_ = _mm256_setzero_si256();
  Sums sums_;
};

// As many keys as fit a register, zero-extended to 32 bits if they are narrower.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct Register {
  static constexpr int lanes = 8;
  static constexpr bool can_compress = false;

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
  static __m256i less(__m256i a, __m256i b) { return _mm256_cmpgt_epi32(b, a); }
  static std::uint64_t bits(__m256i flags) {
    return static_cast<std::uint32_t>(_mm256_movemask_ps(_mm256_castsi256_ps(flags)));
  }
};

template <class Format>
struct Register<Format, 8> {
  static constexpr int lanes = 4;
  static constexpr bool can_compress = false;

  static __m256i load(const std::uint64_t* elements) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(elements));
    return _mm256_and_si256(bits, all(Format::magnitude_mask));
  }
  static __m256i all(std::uint64_t key) {
    return _mm256_set1_epi64x(static_cast<std::int64_t>(key));
  }
  static __m256i less(__m256i a, __m256i b) { return _mm256_cmpgt_epi64(b, a); }
  static std::uint64_t bits(__m256i flags) {
    return static_cast<std::uint32_t>(_mm256_movemask_pd(_mm256_castsi256_pd(flags)));
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
  const auto* halves = reinterpret_cast<const __m256i*>(states);
  return open_bits(_mm256_loadu_si256(halves)) | open_bits(_mm256_loadu_si256(halves + 1)) << 32;
}

// Completes a unit at once: compares one candidate for each undecided element, then deposits the
// results at these elements.
template <class Format>
void settle_unit(const std::uint8_t* states, std::uint64_t open,
                 const typename Format::Storage* candidates, typename Format::Storage threshold,
                 std::uint64_t valid, std::uint8_t* kept) {
  using Keys = Register<Format>;
  const __m256i thresholds = Keys::all(threshold);
  const int found = __builtin_popcountll(open);
  std::uint64_t pruned = 0;
  int j = 0;
  do {  // usually once
    pruned |= Keys::bits(Keys::less(Keys::load(candidates + j), thresholds)) << j;
    j += Keys::lanes;
  } while (j < found);
  const std::uint64_t answers = _pdep_u64(~pruned, open);
  const auto* from = reinterpret_cast<const __m256i*>(states);
  __m256i settled[2];
  for (int half = 0; half < 2; ++half) {
    const __m256i decided = _mm256_and_si256(_mm256_loadu_si256(from + half), _mm256_set1_epi8(1));
    const __m256i now = bytes_where(static_cast<std::uint32_t>(answers >> (32 * half)), 1);
    settled[half] = _mm256_or_si256(decided, now);
  }
  store_states(settled, valid, kept);
}
