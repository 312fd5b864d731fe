// Ranks the elements of groups. Included by kernels.inl, in its namespace.
//
// An element is pruned if fewer elements of its group are smaller than `pruned`, equal ones earlier
// in the group counting as smaller. Keys have no sign bit, so signed comparisons serve; a
// comparison that holds is -1 in its lane, so counts are negative.

#if defined(__AVX512BW__)
constexpr int vector_bytes = 64;
#elif defined(__AVX2__)
constexpr int vector_bytes = 32;
#else
constexpr int vector_bytes = 16;
#endif

template <class Format>
using Signed = std::make_signed_t<typename Format::Storage>;

template <class Int>
struct VectorOf {
  typedef Int type __attribute__((vector_size(vector_bytes)));
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

// Keys and what is kept (all bits set, or none) as kernels.h describes. With Size > 0 the compiler
// knows the size and unrolls the loops.
template <class Format, int Size>
std::uint64_t rank_tile(const void* keys, int runtime_size, int pruned, void* kept) {
  using Int = Signed<Format>;
  const int size = Size > 0 ? Size : runtime_size;
  const auto* from = static_cast<const Int*>(keys);
  auto* to = static_cast<Int*>(kept);
  Vector<Int> largest{};
  for (int lane = 0; lane < group_tile; lane += vector_lanes<Int>) {
    for (int i = 0; i < size; ++i) {
      const auto own = load_vector<Int>(from + i * group_tile + lane);
      largest = larger<Int>(own, largest);
      Vector<Int> smaller{};
      for (int j = 0; j < i; ++j) smaller += own >= load_vector<Int>(from + j * group_tile + lane);
      for (int j = i + 1; j < size; ++j) {
        smaller += own > load_vector<Int>(from + j * group_tile + lane);
      }
      const Vector<Int> is_kept = smaller <= static_cast<Int>(-pruned);
      std::memcpy(to + i * group_tile + lane, &is_kept, sizeof(is_kept));
    }
  }
  return largest_lane<Int>(largest);
}

template <class Format>
std::uint64_t rank_groups(const void* keys, int size, int pruned, void* kept) {
  switch (size) {
    case 4:
      return rank_tile<Format, 4>(keys, size, pruned, kept);
    case 8:
      return rank_tile<Format, 8>(keys, size, pruned, kept);
    case 16:
      return rank_tile<Format, 16>(keys, size, pruned, kept);
    default:
      return rank_tile<Format, 0>(keys, size, pruned, kept);
  }
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
std::uint64_t mask_dense_groups(const void* elements, std::int64_t groups, int pruned,
                                std::uint8_t* kept) {
  using Int = Signed<Format>;
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
void zero_dense_groups(void* elements, std::int64_t groups, int pruned) {
  using Int = Signed<Format>;
  for_each_padded(static_cast<Int*>(elements), groups * Size, [&](Int* block, std::int64_t, int) {
    for (int j = 0; j < unit; j += vector_lanes<Int>) {
      auto bits = load_vector<Int>(block + j);
      bits &= kept_in_groups<Int, Size>(bits & static_cast<Int>(Format::magnitude_mask), pruned);
      std::memcpy(block + j, &bits, sizeof(bits));
    }
  });
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
