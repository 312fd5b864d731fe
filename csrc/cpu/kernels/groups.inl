// Ranks the elements of groups. Included by kernels.inl, in its namespace.
//
// Every lane of a vector has a group of its own, so that no group needs to be shuffled. The largest
// key that is pruned is found by sorting both halves of a group and selecting from the two. Keys
// have no sign bit, so signed comparisons serve; one that holds is -1 in its lane, so that sums of
// comparisons are negative counts.

#if defined(__AVX512BW__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class Format>
using Signed = std::make_signed_t<typename Format::Storage>;

template <class Int, int Lanes = vector_bytes / static_cast<int>(sizeof(Int))>
struct VectorOf {
  typedef Int type __attribute__((vector_size(Lanes * sizeof(Int))));
};
template <class Int>
using Vector = typename VectorOf<Int>::type;
template <class Int>
constexpr int vector_lanes = vector_bytes / static_cast<int>(sizeof(Int));

template <class Int>
inline Vector<Int> load_vector(const void* from) {
  Vector<Int> vector;
  std::memcpy(&vector, from, sizeof(vector));
  return vector;
}

template <class Int>
inline Vector<Int> smaller(const Vector<Int>& a, const Vector<Int>& b) {
  return a < b ? a : b;
}

template <class Int>
inline Vector<Int> larger(const Vector<Int>& a, const Vector<Int>& b) {
  return a > b ? a : b;
}

template <class Int>
inline std::uint64_t largest_lane(const Vector<Int>& vector) {
  Int largest = 0;
  for (int lane = 0; lane < vector_lanes<Int>; ++lane) {
    largest = vector[lane] > largest ? vector[lane] : largest;
  }
  return static_cast<std::uint64_t>(largest);
}

template <class Int>
inline bool is_any_set(const Vector<Int>& vector) {
  std::uint64_t words[vector_bytes / 8];
  std::memcpy(words, &vector, sizeof(vector));
  std::uint64_t any = 0;
  for (const std::uint64_t word : words) any |= word;
  return any != 0;
}

// Batcher's odd-even merge sort of Size elements: that of the next power of two, without what lies
// behind them.
template <int Size>
struct SortingNetwork {
  int lower[Size * Size] = {};
  int upper[Size * Size] = {};
  int count = 0;

  constexpr SortingNetwork() {
    int whole = 1;
    while (whole < Size) whole *= 2;
    sort(0, whole);
  }
  constexpr void sort(int begin, int size) {
    if (size < 2) return;
    sort(begin, size / 2);
    sort(begin + size / 2, size / 2);
    merge(begin, size, 1);
  }
  constexpr void merge(int begin, int size, int step) {
    if (2 * step >= size) return compare(begin, begin + step);
    merge(begin, size, 2 * step);
    merge(begin + step, size, 2 * step);
    for (int i = begin + step; i + step < begin + size; i += 2 * step) compare(i, i + step);
  }
  constexpr void compare(int low, int high) {
    if (high >= Size) return;
    lower[count] = low;
    upper[count++] = high;
  }
};

template <class Int, int Size, int... Step>
inline void sort_each_lane([[maybe_unused]] Vector<Int>* keys,
                           std::integer_sequence<int, Step...>) {
  static constexpr SortingNetwork<Size> network;
  [[maybe_unused]] const auto order = [](Vector<Int>& low, Vector<Int>& high) {
    const Vector<Int> least = smaller<Int>(low, high);
    high = larger<Int>(low, high);
    low = least;
  };
  (order(keys[network.lower[Step]], keys[network.upper[Step]]), ...);
}

// Of group_lines groups with up to 2 * Half elements: the largest of the `pruned` smallest keys, or
// -1 if there are none.
template <class Format, int Half>
[[gnu::flatten]] void find_bounds(const Signed<Format>* tile, int lanes, int size, int pruned,
                                  Signed<Format>* bounds) {
  using Int = Signed<Format>;
  constexpr int steps = SortingNetwork<Half>().count;
  const Vector<Int> beyond = Vector<Int>{} + std::numeric_limits<Int>::max();
  Vector<Int> sorted[2][Half + 1];
  for (auto& half : sorted) half[0] = Vector<Int>{} - 1;
  for (int lane = 0; lane < group_lines; lane += vector_lanes<Int>) {
    for (int half = 0, row = 0; half < 2; ++half) {
      const int end = half == 0 ? (size + 1) / 2 : size;
      Vector<Int> keys[Half];
      for (int i = 0; i < Half; ++i, ++row) {
        keys[i] = row < end ? load_vector<Int>(tile + row * lanes + lane) &
                                  static_cast<Int>(Format::magnitude_mask)
                            : beyond;
      }
      row = end;
      sort_each_lane<Int, Half>(keys, std::make_integer_sequence<int, steps>{});
      for (int i = 0; i < Half; ++i) sorted[half][i + 1] = keys[i];
    }
    // Of two sorted lists, the k-th smallest is the least that the larger of the i-th of one and
    // the (k - i)-th of the other can be.
    Vector<Int> found = beyond;
    const int first = pruned > Half ? pruned - Half : 0;
    for (int i = first; i <= pruned - first; ++i) {
      found = smaller<Int>(found, larger<Int>(sorted[0][i], sorted[1][pruned - i]));
    }
    std::memcpy(bounds + lane, &found, sizeof(found));
  }
}

template <class Format>
auto bounds_finder(int size) {
  if (size <= 4) return find_bounds<Format, 2>;
  if (size <= 8) return find_bounds<Format, 4>;
  if (size <= 16) return find_bounds<Format, 8>;
  if (size <= 24) return find_bounds<Format, 12>;
  if (size <= 32) return find_bounds<Format, 16>;
  if (size <= 48) return find_bounds<Format, 24>;
  return find_bounds<Format, 32>;
}

// Writes 1 for each lane that is set, and 0 for the others, of as many vectors as an integer has
// bytes.
template <class Int>
inline void store_bytes(const Vector<Int>* states, std::uint8_t* bytes) {
#if defined(__AVX2__) && !defined(__AVX512BW__)
  __m256i packed[sizeof(Int)];
  std::memcpy(packed, states, sizeof(packed));
  using Ints = Integers<sizeof(Int)>;
  const __m256i ones = _mm256_and_si256(Ints::in_order(Ints::pack(packed)), _mm256_set1_epi8(1));
  std::memcpy(bytes, &ones, sizeof(ones));
#else
  Int copy[vector_bytes];
  std::memcpy(copy, states, sizeof(copy));
  for (int j = 0; j < vector_bytes; ++j) bytes[j] = static_cast<std::uint8_t>(copy[j] & 1);
#endif
}

// Which elements of some adjacent groups are kept: those above the bounds and, of those equal to
// them, the last. Rows are visited in descending order if there are such ties.
template <class Format, int Vectors>
class KeptLanes {
 public:
  using Int = Signed<Format>;

  KeptLanes(const Int* tile, int lanes, const Int* bounds, int size, int pruned)
      : tile_(tile), lanes_(lanes), size_(size) {
    for (int v = 0; v < Vectors; ++v) {
      bounds_[v] = load_vector<Int>(bounds + v * vector_lanes<Int>);
      ties_[v] = Vector<Int>{} + static_cast<Int>(size - pruned);
    }
    for (int i = 0; i < size; ++i) {
      for (int v = 0; v < Vectors; ++v) {
        const Vector<Int> keys = bits(i, v) & static_cast<Int>(Format::magnitude_mask);
        largest_ = larger<Int>(keys, largest_);
        ties_[v] += keys > bounds_[v];
      }
    }
  }

  Vector<Int> bits(int row, int v) const {
    return load_vector<Int>(tile_ + row * lanes_ + v * vector_lanes<Int>);
  }

  const Vector<Int>& largest() const { return largest_; }

  // Calls body(row, what is set where elements are kept).
  template <class Body>
  void for_each_row(Body&& body) {
    Vector<Int> any{};
    for (int v = 0; v < Vectors; ++v) any |= ties_[v];
    Vector<Int> kept[Vectors];
    if (is_any_set<Int>(any)) {
      for (int i = size_; i-- > 0;) {
        for (int v = 0; v < Vectors; ++v) {
          const Vector<Int> keys = bits(i, v) & static_cast<Int>(Format::magnitude_mask);
          const Vector<Int> stays = (keys == bounds_[v]) & (ties_[v] > 0);
          ties_[v] += stays;
          kept[v] = stays | (keys > bounds_[v]);
        }
        body(i, kept);
      }
    } else {
      for (int i = 0; i < size_; ++i) {
        for (int v = 0; v < Vectors; ++v) {
          kept[v] = (bits(i, v) & static_cast<Int>(Format::magnitude_mask)) > bounds_[v];
        }
        body(i, kept);
      }
    }
  }

 private:
  const Int* tile_;
  int lanes_;
  int size_;
  Vector<Int> bounds_[Vectors];
  Vector<Int> ties_[Vectors];  // that are kept
  Vector<Int> largest_{};
};

template <class Format>
[[gnu::flatten]] std::uint64_t rank_groups(const void* elements, int lanes, int count, int size,
                                           int pruned, std::uint8_t* kept) {
  using Int = Signed<Format>;
  const auto find = bounds_finder<Format>(size);
  const auto* tile = static_cast<const Int*>(elements);
  Vector<Int> largest{};
  for (int lane = 0; lane < count; lane += group_lines) {
    alignas(64) Int bounds[group_lines];
    find(tile + lane, lanes, size, pruned, bounds);
    for (int l = 0; l < group_lines; l += vector_bytes) {
      KeptLanes<Format, static_cast<int>(sizeof(Int))> groups(tile + lane + l, lanes, bounds + l,
                                                              size, pruned);
      largest = larger<Int>(largest, groups.largest());
      groups.for_each_row([&](int row, const Vector<Int>* states) {
        store_bytes<Int>(states, kept + row * lanes + lane + l);
      });
    }
  }
  return largest_lane<Int>(largest);
}

template <class Format>
[[gnu::flatten]] void prune_groups(void* elements, int lanes, int count, int size, int pruned) {
  using Int = Signed<Format>;
  constexpr int vectors = group_lines / vector_lanes<Int> < 4 ? group_lines / vector_lanes<Int> : 4;
  const auto find = bounds_finder<Format>(size);
  auto* const tile = static_cast<Int*>(elements);
  for (int lane = 0; lane < count; lane += group_lines) {
    alignas(64) Int bounds[group_lines];
    find(tile + lane, lanes, size, pruned, bounds);
    for (int l = 0; l < group_lines; l += vectors * vector_lanes<Int>) {
      KeptLanes<Format, vectors> groups(tile + lane + l, lanes, bounds + l, size, pruned);
      groups.for_each_row([&](int row, const Vector<Int>* states) {
        for (int v = 0; v < vectors; ++v) {
          const Vector<Int> left = groups.bits(row, v) & states[v];
          std::memcpy(tile + row * lanes + lane + l + v * vector_lanes<Int>, &left, sizeof(left));
        }
      });
    }
  }
}

// In one register, where memcpy() might take two.
template <int Count, class Element>
inline void copy_elements(const Element* from, Element* to) {
  if constexpr (Count * sizeof(Element) < 32) {
    std::memcpy(to, from, Count * sizeof(Element));
  } else {
    typename VectorOf<Element, Count>::type elements;
    std::memcpy(&elements, from, sizeof(elements));
    std::memcpy(to, &elements, sizeof(elements));
  }
}

// Calls body(width, index) for blocks that cover `count` elements, where width is a constant. The
// last block may overlap the one before it.
template <int Width, class Body>
inline void for_each_block(int count, Body&& body) {
  constexpr std::integral_constant<int, Width> width;
  if (count >= Width) {
    int i = 0;
    for (; i + Width <= count; i += Width) body(width, i);
    if (i < count) body(width, count - Width);
  } else if constexpr (Width > 1) {
    for_each_block<Width / 2>(count, body);
  }
}

// Calls body(in the tile, in memory, how many) for the blocks of the rows, or for single elements
// where these are not adjacent. The number is a constant.
template <class Element, class Memory, class Tile, class Body>
inline void for_each_block_of_rows(Memory* memory, const GroupRows& rows, Tile* tile, int lanes,
                                   Body&& body) {
  constexpr int width = vector_bytes / static_cast<int>(sizeof(Element));
  for (int r = 0; r < rows.count; ++r, memory += rows.step, tile += lanes) {
    if (rows.spacing == 1) {
      for_each_block<width>(rows.length,
                            [&](auto count, int i) { body(tile + i, memory + i, count); });
    } else {
      constexpr std::integral_constant<int, 1> one;
      for (int i = 0; i < rows.length; ++i) body(tile + i, memory + i * rows.spacing, one);
    }
  }
}

template <class Element>
[[gnu::flatten]] void load_rows(const void* elements, const GroupRows& rows, void* tile,
                                int lanes) {
  for_each_block_of_rows<Element>(
      static_cast<const Element*>(elements), rows, static_cast<Element*>(tile), lanes,
      [](Element* to, const Element* from, auto count) { copy_elements<count()>(from, to); });
}

template <class Element>
[[gnu::flatten]] void store_rows(const void* tile, int lanes, void* elements,
                                 const GroupRows& rows) {
  for_each_block_of_rows<Element>(
      static_cast<Element*>(elements), rows, static_cast<const Element*>(tile), lanes,
      [](const Element* from, Element* to, auto count) { copy_elements<count()>(from, to); });
}

template <class Element>
void keep(void* elements, const std::uint8_t* kept, int count) {
  auto* const __restrict to = static_cast<Element*>(elements);
  for (int i = 0; i < count; ++i) {
    to[i] = static_cast<Element>(to[i] & -static_cast<Element>(kept[i]));
  }
}

// Squares of as many elements as make a part of a vector are transposed, in all parts at once.
constexpr int part_bytes = 16;
constexpr int vector_parts = vector_bytes / part_bytes;
template <class Int>
constexpr int part_lanes = part_bytes / static_cast<int>(sizeof(Int));

// The elements of the lower or upper half of each part of two vectors in turns.
template <class Int, bool Upper, int... Lane>
inline Vector<Int> interleave(const Vector<Int>& a, const Vector<Int>& b,
                              std::integer_sequence<int, Lane...>) {
  constexpr int part = part_lanes<Int>;
#define LAMPFAST_CHOSEN \
  (Lane / part * part + Lane % part / 2 + Upper * part / 2 + Lane % 2 * vector_lanes<Int>)
#if defined(__clang__)
  return __builtin_shufflevector(a, b, LAMPFAST_CHOSEN...);
#else
  return __builtin_shuffle(a, b, Vector<Int>{static_cast<Int>(LAMPFAST_CHOSEN)...});
#endif
#undef LAMPFAST_CHOSEN
}

template <class Int, int... I>
inline void interleave_halves(Vector<Int>* vectors, std::integer_sequence<int, I...>) {
  using Lanes = std::make_integer_sequence<int, vector_lanes<Int>>;
  constexpr int half = part_lanes<Int> / 2;
  const Vector<Int> mixed[] = {
      interleave<Int, I % 2 == 1>(vectors[I / 2], vectors[I / 2 + half], Lanes{})...};
  ((vectors[I] = mixed[I]), ...);
}

template <class Int, int Stage = 1>
inline void transpose_parts(Vector<Int>* vectors) {
  if constexpr (Stage < part_lanes<Int>) {
    interleave_halves<Int>(vectors, std::make_integer_sequence<int, part_lanes<Int>>{});
    transpose_parts<Int, 2 * Stage>(vectors);
  }
}

// A vector's parts are in the same column of lines[0], lines[part_lanes], ...
template <class Int>
inline Vector<Int> load_parts(const void* const* lines, int column) {
#if defined(__AVX2__)
  using Part = __m128i;
#else
  using Part = Vector<Int>;
#endif
  const auto part = [&](int p) {
    return reinterpret_cast<const Part*>(static_cast<const Int*>(lines[p * part_lanes<Int>]) +
                                         column);
  };
#if defined(__AVX512BW__)
  __m512i parts = _mm512_castsi128_si512(_mm_loadu_si128(part(0)));
  parts = _mm512_inserti32x4(parts, _mm_loadu_si128(part(1)), 1);
  parts = _mm512_inserti32x4(parts, _mm_loadu_si128(part(2)), 2);
  parts = _mm512_inserti32x4(parts, _mm_loadu_si128(part(3)), 3);
  return reinterpret_cast<Vector<Int>>(parts);
#elif defined(__AVX2__)
  return reinterpret_cast<Vector<Int>>(_mm256_loadu2_m128i(part(1), part(0)));
#else
  return load_vector<Int>(part(0));
#endif
}

template <class Int>
inline void store_parts(const Vector<Int>& vector, void* const* lines, int column) {
  typedef std::int64_t Words __attribute__((vector_size(vector_bytes)));
  typedef std::int64_t Part __attribute__((vector_size(part_bytes)));
  const auto words = reinterpret_cast<Words>(vector);
  for (int p = 0; p < vector_parts; ++p) {
    const Part part = {words[2 * p], words[2 * p + 1]};
    std::memcpy(static_cast<Int*>(lines[p * part_lanes<Int>]) + column, &part, part_bytes);
  }
}

template <class Int, int... I>
inline void load_square(const void* const* lines, int column, const int* places, Int* tile,
                        std::integer_sequence<int, I...>) {
  Vector<Int> vectors[] = {load_parts<Int>(lines + I, column)...};
  transpose_parts<Int>(vectors);
  (std::memcpy(tile + places[I], &vectors[I], vector_bytes), ...);
}

template <class Int, int... I>
inline void store_square(const Int* tile, const int* places, void* const* lines, int column,
                         std::integer_sequence<int, I...>) {
  Vector<Int> vectors[] = {load_vector<Int>(tile + places[I])...};
  transpose_parts<Int>(vectors);
  (store_parts<Int>(vectors[I], lines + I, column), ...);
}

// Calls body(first line, first column) for squares that cover the lines. The last may overlap.
template <class Int, class Body>
inline void for_each_square(int count, int columns, Body&& body) {
  constexpr int part = part_lanes<Int>;
  for (int line = 0; line < count; line += vector_lanes<Int>) {
    for (int column = 0; column < columns; column += part) {
      body(line, column + part <= columns ? column : columns - part);
    }
  }
}

template <class Int>
[[gnu::flatten]] void load_lines(const void* const* lines, int count, int columns,
                                 const int* places, void* tile) {
  for_each_square<Int>(count, columns, [&](int line, int column) {
    load_square<Int>(lines + line, column, places + column, static_cast<Int*>(tile) + line,
                     std::make_integer_sequence<int, part_lanes<Int>>{});
  });
}

template <class Int>
[[gnu::flatten]] void store_lines(const void* tile, int count, int columns, const int* places,
                                  void* const* lines) {
  for_each_square<Int>(count, columns, [&](int line, int column) {
    store_square<Int>(static_cast<const Int*>(tile) + line, places + column, lines + line, column,
                      std::make_integer_sequence<int, part_lanes<Int>>{});
  });
}

#if defined(LAMPFAST_REGISTERS)

// The element `By` places further on in the same group, cyclically, in each lane. Those that lie
// before the lane's own element are one smaller, so that equal ones count as smaller.
template <class Int, int Size, int By, int... Lane>
inline Vector<Int> other_in_group(const Vector<Int>& keys, std::integer_sequence<int, Lane...>) {
#if defined(__clang__)
  const Vector<Int> turned =
      __builtin_shufflevector(keys, keys, (Lane / Size * Size + (Lane + By) % Size)...);
#else
  const Vector<Int> turned = __builtin_shuffle(
      keys, Vector<Int>{static_cast<Int>(Lane / Size * Size + (Lane + By) % Size)...});
#endif
  return turned + Vector<Int>{static_cast<Int>(Lane % Size + By >= Size ? -1 : 0)...};
}

// Minus the number of elements of the same group that are smaller, in each lane.
template <class Int, int Size, int... Before>
inline Vector<Int> count_smaller(const Vector<Int>& keys, std::integer_sequence<int, Before...>) {
  using Lanes = std::make_integer_sequence<int, vector_lanes<Int>>;
  Vector<Int> smaller{};
  ((smaller += keys > other_in_group<Int, Size, Before + 1>(keys, Lanes{})), ...);
  return smaller;
}

// Which elements of a vector are kept: all bits set, or none.
template <class Int, int Size>
inline Vector<Int> kept_in_groups(const Vector<Int>& keys, int pruned) {
  return count_smaller<Int, Size>(keys, std::make_integer_sequence<int, Size - 1>{}) <=
         static_cast<Int>(-pruned);
}

// Calls body(elements, count) for blocks of `unit` elements, the last of which may have fewer; a
// short one is passed as a copy, with zeros behind it.
template <class Int, class Body>
inline void for_each_padded(Int* elements, std::int64_t count, Body&& body) {
  std::int64_t i = 0;
  for (; i + unit <= count; i += unit) body(elements + i, i, unit);
  if (i == count) return;
  std::remove_const_t<Int> copy[unit] = {};
  const auto rest = static_cast<int>(count - i);
  std::memcpy(copy, elements + i, static_cast<std::size_t>(rest) * sizeof(Int));
  body(copy, i, rest);
  if constexpr (!std::is_const_v<Int>) {
    std::memcpy(elements + i, copy, static_cast<std::size_t>(rest) * sizeof(Int));
  }
}

template <class Format, int Size>
std::uint64_t mask_dense_groups(const void* elements, std::int64_t groups, int pruned, void* mask) {
  using Int = Signed<Format>;
  auto* const kept = static_cast<std::uint8_t*>(mask);
  Vector<Int> largest{};
  for_each_padded(static_cast<const Int*>(elements), groups * Size,
                  [&](const Int* block, std::int64_t at, int count) {
                    Int states[unit];
                    for (int j = 0; j < unit; j += vector_lanes<Int>) {
                      const auto keys =
                          load_vector<Int>(block + j) & static_cast<Int>(Format::magnitude_mask);
                      largest = larger<Int>(keys, largest);
                      const auto is_kept = kept_in_groups<Int, Size>(keys, pruned);
                      std::memcpy(states + j, &is_kept, sizeof(is_kept));
                    }
                    for (int j = 0; j < count; ++j) {
                      kept[at + j] = static_cast<std::uint8_t>(states[j] & 1);
                    }
                  });
  return largest_lane<Int>(largest);
}

template <class Format, int Size>
std::uint64_t zero_dense_groups(void* elements, std::int64_t groups, int pruned) {
  using Int = Signed<Format>;
  for_each_padded(static_cast<Int*>(elements), groups * Size, [&](Int* block, std::int64_t, int) {
    for (int j = 0; j < unit; j += vector_lanes<Int>) {
      auto bits = load_vector<Int>(block + j);
      bits &= kept_in_groups<Int, Size>(bits & static_cast<Int>(Format::magnitude_mask), pruned);
      std::memcpy(block + j, &bits, sizeof(bits));
    }
  });
  return 0;
}

template <class Format, int Size>
DenseGroups dense_groups_of() {
  if constexpr (Size <= vector_lanes<Signed<Format>>) {
    return {mask_dense_groups<Format, Size>, zero_dense_groups<Format, Size>};
  } else {
    return {};
  }
}

template <class Format>
DenseGroups dense_groups(int size) {
  switch (size) {
    case 2:
      return dense_groups_of<Format, 2>();
    case 4:
      return dense_groups_of<Format, 4>();
    case 8:
      return dense_groups_of<Format, 8>();
    default:
      return {};
  }
}

#else

template <class Format>
DenseGroups dense_groups(int) {
  return {};
}

#endif
