// The kernels for one instruction set. Included by a translation unit with its own compiler flags,
// which defines LAMPFAST_ISA as the namespace. Nothing here may call an inline function that other
// units use too: the linker keeps one copy, which may be compiled for the wrong processor.

#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>

#if defined(__AVX2__)
#if defined(__GNUC__) && !defined(__clang__)
// GCC 12 takes the deliberately undefined operands inside its own header for mistakes.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include <immintrin.h>
#pragma GCC diagnostic pop
#else
#include <immintrin.h>
#endif
#define LAMPFAST_REGISTERS
#endif

#include "core/error_bounds.h"
#include "core/key_format.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu::LAMPFAST_ISA {
namespace {

#if defined(LAMPFAST_REGISTERS)
// How many elements are processed at a time: as many as a word has bits, and as there are mask
// bytes in a register of AVX-512.
constexpr int unit = 64;

// Calls body(index of its first element, elements, valid) for each unit; `valid` has a bit for each
// of its elements. The last unit may be a copy that is filled up with zeros.
template <class Key, class Body>
[[gnu::always_inline]] inline void for_each_unit(const Key* elements, std::int64_t count,
                                                 Body&& body) {
  std::int64_t i = 0;
  for (; i + unit <= count; i += unit) body(i, elements + i, ~std::uint64_t{0});
  if (i == count) return;
  alignas(64) Key rest[unit] = {};
  std::memcpy(rest, elements + i, static_cast<std::size_t>(count - i) * sizeof(Key));
  body(i, static_cast<const Key*>(rest), (std::uint64_t{1} << (count - i)) - 1);
}
#endif

#if defined(__AVX512BW__)
#include "cpu/kernels/registers_avx512.inl"
#elif defined(__AVX2__)
#include "cpu/kernels/registers_avx2.inl"
#endif

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

// The portable version: short plain loops of a form that compilers vectorise.
template <class Format>
class Block {
 public:
  using Key = typename Format::Storage;

  Block(const Key* elements, int count) : count_(count) {
    for (int i = 0; i < count; ++i) {
      keys_[i] = static_cast<Key>(elements[i] & Format::magnitude_mask);
    }
    // Zeros, which are below every interval, fill up the last unit.
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

#if defined(LAMPFAST_REGISTERS)
// Writes the chosen elements of a unit, and possibly other values behind them; returns how many are
// chosen. Usually there is one group of them at most, which is written without a branch: their
// number cannot be predicted.
template <class Format>
int compact(const typename Format::Storage* elements, std::uint64_t chosen,
            typename Format::Storage* to) {
  using Keys = Register<Format>;
  constexpr int worth_compressing = 8;
  const int found = __builtin_popcountll(chosen);
  if (found == unit) {  // as of ties
    std::memcpy(to, elements, unit * sizeof(*to));
    return found;
  }
  if constexpr (Keys::can_compress) {
    if (found > worth_compressing) {
      for (int j = 0; j < unit; j += Keys::lanes) {
        const auto here = static_cast<typename Keys::Flags>(chosen >> j);
        Keys::compress(here, Keys::load(elements + j), to);
        to += __builtin_popcount(here);
      }
      return found;
    }
  }
  constexpr int group = 4;
  int i = 0;
  do {
    for (const int end = i + group; i < end; ++i) {
      to[i] = elements[_tzcnt_u64(chosen) % unit];  // any element once none is left
      chosen = _blsr_u64(chosen);
    }
  } while (i < found);
  return found;
}

// Turns elements that were found inside an interval into keys. Another thread that trains meanwhile
// may have changed one since: as bins are indexed by these keys, one that has left the interval is
// replaced by its low end.
template <class Format>
void keep_inside(typename Format::Storage* inside, int count, typename Format::Storage low,
                 typename Format::Storage high) {
  using Key = typename Format::Storage;
  const auto width = static_cast<Key>(high - low);
  constexpr int lanes = 32 / static_cast<int>(sizeof(Key));
  for (int begin = 0; begin < count; begin += lanes) {
    for (int i = begin; i < begin + lanes; ++i) {
      const auto key = static_cast<Key>(inside[i] & Format::magnitude_mask);
      inside[i] = static_cast<Key>(key - low) < width ? key : low;
    }
  }
}

// One pass, with the keys in registers.
template <class Format>
Classified classify_in_registers(const typename Format::Storage* elements, int count,
                                 typename Format::Storage low, typename Format::Storage high,
                                 double scale, typename Format::Storage* inside,
                                 std::uint8_t* kept) {
  using Key = typename Format::Storage;
  Classifier<Format> classifier(low, high, scale);
  int found = 0;
  for_each_unit(
      elements, count,
      [&](std::int64_t i, const Key* here, std::uint64_t valid) __attribute__((always_inline)) {
        std::uint8_t* const kept_here = kept == nullptr ? nullptr : kept + i;
        found += compact<Format>(here, classifier.classify(here, valid, kept_here), inside + found);
      });
  keep_inside<Format>(inside, found, low, high);
  return classifier.result(elements, count, found);
}
#endif

template <class Format>
Classified classify(const void* elements, int count, const KeyInterval& interval, double scale,
                    void* inside, std::uint8_t* kept) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  auto* keys = static_cast<Key*>(inside);
  const auto low = static_cast<Key>(interval.low);
  const auto high = static_cast<Key>(interval.high);
#if defined(LAMPFAST_REGISTERS)
  return classify_in_registers<Format>(data, count, low, high, scale, keys, kept);
#else
  const Block<Format> block(data, count);
  const int below = block.count_below(low);
  return {below, count - block.count_below(high), block.compact(low, high, keys, kept),
          block.sum_from(high, scale)};
#endif
}

// Integers and floats as wide as those that a format is tallied in.
template <class Format, std::size_t KeyBytes = sizeof(typename Format::Storage)>
struct TallyTypes {
  using Integer = std::int32_t;
  using Float = float;
};
template <class Format>
struct TallyTypes<Format, 8> {
  using Integer = std::int64_t;
  using Float = double;
};

// As many elements as two registers of lanes hold.
template <class Format>
class RoughSums {
 public:
  using Key = typename Format::Storage;
  using Integer = typename TallyTypes<Format>::Integer;
  using Float = typename TallyTypes<Format>::Float;
  static constexpr int elements = 2 * lane_count;

  RoughSums(std::uint64_t key, double scale)
      : least_(static_cast<Integer>(key)), scale_(static_cast<Float>(scale)) {}

  void add(const Key* from) {
    for (int half = 0; half < 2; ++half) {
      Lanes<Key> keys;
      std::memcpy(&keys, from + half * lane_count, sizeof(keys));
      keys &= Format::magnitude_mask;
      // Keys have no sign bit, so signed comparisons serve.
      const auto wide = __builtin_convertvector(keys, Lanes<Integer>);
      const Lanes<Integer> is_above = wide >= least_;
      Lanes<Integer> bits = wide & is_above;
      if constexpr (sizeof(Key) < sizeof(Integer)) bits = bits << (23 - Format::mantissa_bits);
      Lanes<Float> values;
      std::memcpy(&values, &bits, sizeof(values));
      if constexpr (sizeof(Key) < sizeof(Integer)) values *= Format::rebias;
      values *= scale_;
      sums_[half] += values * values;
      above_[half] -= is_above;
    }
  }

  std::int64_t above() const {
    std::int64_t total = 0;
    for (int lane = 0; lane < lane_count; ++lane) total += above_[0][lane] + above_[1][lane];
    return total;
  }
  double sum() const {
    double total = 0.0;
    for (int lane = 0; lane < lane_count; ++lane) {
      total += static_cast<double>(sums_[0][lane]) + static_cast<double>(sums_[1][lane]);
    }
    return total;
  }

 private:
  Integer least_;
  Float scale_;
  Lanes<Float> sums_[2] = {};
  Lanes<Integer> above_[2] = {};
};

template <class Format>
Tally tally(const void* elements, std::int64_t count, std::uint64_t key, double scale) {
  using Sums = RoughSums<Format>;
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  constexpr std::int64_t block = 1 << 12;  // so short that sums in float32 are good enough
  std::int64_t below = count;
  double above = 0.0;
  for (std::int64_t begin = 0; begin < count; begin += block) {
    const std::int64_t end = count - begin < block ? count : begin + block;
    Sums sums(key, scale);
    std::int64_t i = begin;
    for (; i + Sums::elements <= end; i += Sums::elements) sums.add(data + i);
    if (i < end) {
      Key rest[Sums::elements] = {};  // zeros are below every key
      std::memcpy(rest, data + i, static_cast<std::size_t>(end - i) * sizeof(Key));
      sums.add(rest);
    }
    below -= sums.above();
    above += sums.sum();
  }
  return {static_cast<double>(below), above};
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
std::int64_t settle(std::uint8_t* kept, std::int64_t count, const void* candidates,
                    std::int64_t available, std::uint64_t threshold) {
  using Key = typename Format::Storage;
  const auto* keys = static_cast<const Key*>(candidates);
  const auto bound = static_cast<Key>(threshold);
#if defined(LAMPFAST_REGISTERS)
  // Units without undecided elements are written too: whether a unit has any cannot be predicted.
  std::int64_t settled = 0;
  for_each_unit(kept, count,
                [&](std::int64_t i, const std::uint8_t* states, std::uint64_t valid)
                    __attribute__((always_inline)) {
                      const std::uint64_t places = open_places(states);
                      const std::int64_t end = settled + __builtin_popcountll(places);
                      if (end > available) return;  // another thread has written the mask
                      settle_unit<Format>(states, places, keys + settled, bound, valid, kept + i);
                      settled = end;
                    });
  return settled;
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
      const bool is_open = kept[j] == undecided && settled < available;
      const auto answer = static_cast<std::uint8_t>(keys[settled] < bound ? 0 : 1);
      kept[j] = is_open ? answer : kept[j];
      settled += is_open;
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

// The processor's own prefetching ends with a page, so that each page begins with a miss unless its
// first lines are fetched while the one before is read.
constexpr int page_bytes = 4096;
inline void fetch_page(const void* page) {
  __builtin_prefetch(page);
  __builtin_prefetch(static_cast<const char*>(page) + 64);
}

template <class Format>
std::uint64_t largest(const void* elements, std::int64_t count) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  constexpr std::int64_t page = page_bytes / sizeof(Key);
  Key most = 0;
  for (std::int64_t begin = 0; begin < count; begin += page) {
    fetch_page(data + begin + page);
    const std::int64_t end = count - begin < page ? count : begin + page;
    for (std::int64_t i = begin; i < end; ++i) {
      const auto key = static_cast<Key>(data[i] & Format::magnitude_mask);
      most = key > most ? key : most;
    }
  }
  return most;
}

template <class Format>
KeyStats stats(const void* elements, std::int64_t count) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  // Zeros are counted in the key's own type, so that a register of keys makes a register of counts.
  constexpr std::int64_t most = std::numeric_limits<Key>::max() < 4096 ? 128 : 4096;
  auto least = std::numeric_limits<Key>::max();
  Key largest = 0;
  std::int64_t total = 0;
  for (std::int64_t begin = 0; begin < count; begin += most) {
    const std::int64_t end = count - begin < most ? count : begin + most;
    Key zeros = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      const auto key = static_cast<Key>(data[i] & Format::magnitude_mask);
      const auto before = static_cast<Key>(key - 1);  // makes 0 the largest
      zeros = static_cast<Key>(zeros + (key == 0));
      least = before < least ? before : least;
      largest = key > largest ? key : largest;
    }
    total += static_cast<std::int64_t>(zeros);
  }
  const bool has_least = least < Format::not_finite;
  return {total, has_least ? std::uint64_t{least} + 1 : Format::not_finite, largest};
}

template <class Format>
std::int64_t count_equal(const void* elements, std::int64_t count, std::uint64_t wanted) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  const auto key = static_cast<Key>(wanted);
  constexpr std::int64_t most = std::numeric_limits<Key>::max() < 4096 ? 128 : 4096;
  std::int64_t total = 0;
  for (std::int64_t begin = 0; begin < count; begin += most) {
    // Counts are of the key's own type, so that a register of keys makes a register of counts.
    const std::int64_t end = count - begin < most ? count : begin + most;
    Key equal = 0;
    for (std::int64_t i = begin; i < end; ++i) {
      equal = static_cast<Key>(equal + (static_cast<Key>(data[i] & Format::magnitude_mask) == key));
    }
    total += static_cast<std::int64_t>(equal);
  }
  return total;
}

template <class Format>
void pack(const void* elements, std::int64_t count, MaskWord* words) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
#if defined(LAMPFAST_REGISTERS)
  static_assert(unit == word_weights);
  using Keys = Register<Format>;
  const auto zeros = Keys::all(0);
  for_each_unit(data, count, [&](std::int64_t, const Key* here, std::uint64_t) {
    MaskWord word = 0;
    for (int j = 0; j < unit; j += Keys::lanes) {
      word |= MaskWord{Keys::bits(Keys::less(zeros, Keys::load(here + j)))} << j;
    }
    *words++ = word;
  });
#else
  for (std::int64_t i = 0; i < count; i += word_weights) {
    const std::int64_t here = count - i < word_weights ? count - i : word_weights;
    MaskWord word = 0;
    for (std::int64_t j = 0; j < here; ++j) {
      word |= MaskWord{(data[i + j] & Format::magnitude_mask) != 0} << j;
    }
    *words++ = word;
  }
#endif
}

#if !defined(LAMPFAST_REGISTERS)
// Zeroes the elements of a word whose bits are clear.
template <class Key>
void zero_cleared(Key* elements, MaskWord bits) {
  // The register size that most processors have: GCC compares larger vectors lane by lane.
  typedef Key Vector __attribute__((vector_size(16)));
  constexpr int lanes = 16 / static_cast<int>(sizeof(Key));
  for (int j = 0; j < word_weights; j += lanes) {
    Vector word_bits;  // some of the word's bits, in every lane
    Vector lane_bit;   // that lane's own bit among them
    for (int lane = 0; lane < lanes; ++lane) {
      word_bits[lane] = static_cast<Key>(bits >> (sizeof(Key) == 1 ? j + lane / 8 * 8 : j));
      lane_bit[lane] = static_cast<Key>(1 << (sizeof(Key) == 1 ? lane % 8 : lane));
    }
    Vector kept;
    std::memcpy(&kept, elements + j, sizeof(kept));
    kept &= reinterpret_cast<Vector>((word_bits & lane_bit) == lane_bit);
    std::memcpy(elements + j, &kept, sizeof(kept));
  }
}
#endif

template <class Format>
void apply_packed_mask(void* elements, std::int64_t count, const MaskWord* words) {
  auto* data = static_cast<typename Format::Storage*>(elements);
  for (; count >= word_weights; count -= word_weights, data += word_weights, ++words) {
    if (~*words == 0) continue;
    zero_cleared(data, *words);
  }
  if (count == 0) return;
  const MaskWord valid = (MaskWord{1} << count) - 1;
  for (MaskWord cleared = ~*words & valid; cleared != 0; cleared &= cleared - 1) {
    data[__builtin_ctzll(cleared)] = 0;
  }
}

#include "cpu/kernels/groups.inl"
#include "cpu/kernels/groups_adjacent.inl"

double score_keys_here(const std::uint32_t* keys, double after, float* scores) {
  constexpr int parts = 4;  // independent sums, as each addition waits for the one before it
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
void magnitudes(const void* elements, std::int64_t count, void* doubles) {
  using Key = typename Format::Storage;
  const auto* data = static_cast<const Key*>(elements);
  auto* to = static_cast<double*>(doubles);
  const auto write = [](const Key* from, double* there) {
    Lanes<Key> keys;
    std::memcpy(&keys, from, sizeof(keys));
    keys &= Format::magnitude_mask;
    Lanes<double> magnitudes;
    values<Format>(magnitudes, keys);
    std::memcpy(there, &magnitudes, sizeof(magnitudes));
  };
  std::int64_t i = 0;
  for (; i + lane_count <= count; i += lane_count) write(data + i, to + i);
  if (i == count) return;
  const auto rest = static_cast<std::size_t>(count - i);
  Key last[lane_count] = {};
  double widened[lane_count];
  std::memcpy(last, data + i, rest * sizeof(Key));
  write(last, widened);
  std::memcpy(to + i, widened, rest * sizeof(double));
}

template <class Format, bool may_underflow>
void add_squares_scaled(const typename Format::Storage* elements, std::int64_t count, double scale,
                        double* sums) {
  using Key = typename Format::Storage;
  const auto add = [&](const Key* from, double* to) {
    Lanes<Key> keys;
    std::memcpy(&keys, from, sizeof(keys));
    keys &= Format::magnitude_mask;
    Lanes<double> value;
    values<Format>(value, keys);
    if constexpr (may_underflow) value *= scale;
    Lanes<double> square = value * value;
    if constexpr (may_underflow) {
      constexpr double least = error_bounds::least_tile_square;
      const Lanes<double> zero = {};
      const Lanes<double> lifted = square < least ? zero + least : square;
      Lanes<double> magnitude;
      values<Format>(magnitude, keys);  // as a product with the scale may be 0
      square = magnitude == zero ? zero : lifted;
    }
    Lanes<double> sum;
    std::memcpy(&sum, to, sizeof(sum));
    sum += square;
    std::memcpy(to, &sum, sizeof(sum));
  };
  std::int64_t i = 0;
  for (; i + lane_count <= count; i += lane_count) add(elements + i, sums + i);
  if (i == count) return;
  const auto rest = static_cast<std::size_t>(count - i);
  Key last[lane_count] = {};
  double added[lane_count] = {};
  std::memcpy(last, elements + i, rest * sizeof(Key));
  std::memcpy(added, sums + i, rest * sizeof(double));
  add(last, added);
  std::memcpy(sums + i, added, rest * sizeof(double));
}

template <class Format>
void add_squares(const void* elements, std::int64_t count, double scale, double* sums) {
  const auto* data = static_cast<const typename Format::Storage*>(elements);
  if (sizeof(*data) == 8 || scale != 1.0) {
    add_squares_scaled<Format, true>(data, count, scale, sums);
  } else {
    add_squares_scaled<Format, false>(data, count, scale, sums);
  }
}

template <class Format>
constexpr Kernels kernels_of() {
  using Int = Signed<Format>;
  return {classify<Format>,    tally<Format>,
          mask<Format>,        settle<Format>,
          zero<Format>,        largest<Format>,
          stats<Format>,       count_equal<Format>,
          pack<Format>,        apply_packed_mask<Format>,
          magnitudes<Format>,  add_squares<Format>,
          load_lines<Int>,     store_lines<Int>,
          load_rows<Int>,      store_rows<Int>,
          rank_groups<Format>, prune_groups<Format>,
          mask_lanes<Format>,  zero_lanes<Format>,
          keep<Int>,           dense_groups<Format>};
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
