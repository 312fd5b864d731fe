// Ranks the elements of groups of 2, 4 or 8 that lie side by side, in the memory where they are.
// Included by kernels.inl, in its namespace.
//
// Every lane of a vector has a group of its own. Of each two elements of a group one goes before
// the other, and those that have the fewest before them are pruned.

// The pairs of a group's elements of which one is among the `Count` from `First` on.
template <int Size, int First, int Count>
struct PairsWith {
  int first[Size * Count] = {};
  int second[Size * Count] = {};
  int count = 0;

  static constexpr bool has(int i) { return i >= First && i < First + Count; }

  constexpr PairsWith() {
    for (int i = 0; i < Size; ++i) {
      for (int j = i + 1; j < Size; ++j) {
        if (!has(i) && !has(j)) continue;
        first[count] = i;
        second[count++] = j;
      }
    }
  }
};

// Sets all bits of the elements that are kept, and none of the others, for some of a group's.
template <class Int, int Size, int First, int Count, int... Pair>
inline void rank_some(const Vector<Int>* keys, int pruned, Vector<Int>* kept,
                      std::integer_sequence<int, Pair...>) {
  static constexpr PairsWith<Size, First, Count> pairs;
  // The element's place, less the number of those that go before it.
  Vector<Int> before[Size] = {};
  const auto compare = [&](int i, int j) {
    const Vector<Int> is_larger = keys[i] > keys[j];
    if (pairs.has(i)) before[i] += is_larger;
    if (pairs.has(j)) before[j] -= is_larger;
  };
  (compare(pairs.first[Pair], pairs.second[Pair]), ...);
  for (int i = First; i < First + Count; ++i) {
    kept[i] = before[i] < static_cast<Int>(i - pruned + 1);
  }
}

// As many at a time as registers hold, with all that they are compared to.
template <class Int, int Size, int First = 0>
inline void rank_all(const Vector<Int>* keys, int pruned, Vector<Int>* kept) {
  if constexpr (First < Size) {
    constexpr int count = Size < 4 ? Size : 4;
    constexpr int pairs = PairsWith<Size, First, count>().count;
    rank_some<Int, Size, First, count>(keys, pruned, kept,
                                       std::make_integer_sequence<int, pairs>{});
    rank_all<Int, Size, First + count>(keys, pruned, kept);
  }
}

// Where the lanes of a vector lie: side by side, or in blocks that are no wider than a part.
template <class Int, bool InParts>
struct LanesAt {
  static constexpr int blocks = InParts ? vector_parts : 1;
  static constexpr int lanes = vector_lanes<Int> / blocks;

  static Vector<Int> load(const Int* from, std::int64_t block) {
    if constexpr (!InParts) return load_vector<Int>(from);
    const void* lines[vector_lanes<Int>];
    for (int p = 0; p < blocks; ++p) lines[p * lanes] = from + p * block;
    return load_parts<Int>(lines, 0);
  }

  // Stores the elements of groups, block by block and in each from the first to the last.
  template <int Size>
  static void store(const Vector<Int>* vectors, Int* to, const AdjacentGroups::Place& place) {
    using Words = Vector<std::int64_t>;
    using Part = typename VectorOf<std::int64_t, vector_lanes<std::int64_t> / blocks>::type;
    for (int b = 0; b < blocks; ++b) {
      for (int i = 0; i < Size; ++i) {
        const auto words = reinterpret_cast<Words>(vectors[i]);
        Part part;
        if constexpr (InParts) {
          part = Part{words[2 * b], words[2 * b + 1]};
        } else {
          part = words;
        }
        std::memcpy(to + b * place.block + i * place.step, &part, sizeof(part));
      }
    }
  }
};

// The two ways to write what has been ranked.
template <class Format>
struct ZeroPruned {
  using Out = Signed<Format>;

  template <int Size, bool InParts>
  static void write(const Vector<Out>* bits, const Vector<Out>* kept, Out* to,
                    const AdjacentGroups::Place& place) {
    Vector<Out> left[Size];
    for (int i = 0; i < Size; ++i) left[i] = bits[i] & kept[i];
    LanesAt<Out, InParts>::template store<Size>(left, to, place);
  }
};

template <class Format>
struct MaskPruned {
  using Int = Signed<Format>;
  using Out = std::uint8_t;

  template <int Size, bool InParts>
  static void write(const Vector<Int>*, const Vector<Int>* kept, Out* to,
                    const AdjacentGroups::Place& place) {
    using Lanes = LanesAt<Int, InParts>;
    if constexpr (sizeof(Int) == 1) {
      Vector<Int> ones[Size];
      for (int i = 0; i < Size; ++i) ones[i] = kept[i] & 1;
      Lanes::template store<Size>(ones, reinterpret_cast<Int*>(to), place);
      return;
    }
    constexpr int at_once = static_cast<int>(sizeof(Int));
    constexpr int packs = (Size + at_once - 1) / at_once;
    Vector<Int> states[packs * at_once] = {};
    for (int i = 0; i < Size; ++i) states[i] = kept[i];
    Out bytes[packs * vector_bytes];
    for (int k = 0; k < packs; ++k) {
      store_bytes<Int>(states + k * at_once, bytes + k * vector_bytes);
    }
    for (int b = 0; b < Lanes::blocks; ++b) {
      for (int i = 0; i < Size; ++i) {
        std::memcpy(to + b * place.block + i * place.step,
                    bytes + i * vector_lanes<Int> + b * Lanes::lanes, Lanes::lanes);
      }
    }
  }
};

// Vectors of so many lanes reach beyond narrow blocks. How many at the end have not enough others
// behind them: all, if there are gaps.
inline std::int64_t last_blocks(const AdjacentGroups& groups, int lanes) {
  const std::int64_t size = groups.size * groups.lanes;
  const auto is_dense = [&](const AdjacentGroups::Place& place) {
    return place.step == groups.lanes && place.block == size;
  };
  const std::int64_t last = (lanes - groups.lanes + size - 1) / size;
  const bool has_gaps = !is_dense(groups.source) || !is_dense(groups.target);
  return has_gaps || last > groups.blocks ? groups.blocks : last;
}

template <class Format, int Size, class Writer>
class AdjacentRanking {
 public:
  using Int = Signed<Format>;
  using Out = typename Writer::Out;

  AdjacentRanking(const Int* elements, Out* out, const AdjacentGroups& groups)
      : elements_(elements), out_(out), groups_(groups) {}

  // Returns the largest key, if a mask is written.
  std::uint64_t rank() const {
    if (groups_.lanes >= vector_lanes<Int>) return rank_wide();
    return groups_.lanes <= part_lanes<Int> ? rank_narrow<true>() : rank_narrow<false>();
  }

 private:
  static constexpr bool is_mask = !std::is_same_v<Out, Int>;

  struct Bits {
    Vector<Int> of[Size];
  };

  template <bool InParts>
  static Bits load(const Int* from, const AdjacentGroups::Place& place) {
    Bits bits;
    for (int i = 0; i < Size; ++i) {
      bits.of[i] = LanesAt<Int, InParts>::load(from + i * place.step, place.block);
    }
    return bits;
  }

  // Keeps what is set in `beyond` as well.
  template <bool InParts>
  void rank(const Bits& bits, const Vector<Int>& beyond, Out* to,
            const AdjacentGroups::Place& place, Vector<Int>& largest) const {
    Vector<Int> keys[Size];
    Vector<Int> kept[Size];
    for (int i = 0; i < Size; ++i) {
      keys[i] = bits.of[i] & static_cast<Int>(Format::magnitude_mask);
      if constexpr (is_mask) largest = larger<Int>(keys[i], largest);
    }
    rank_all<Int, Size>(keys, groups_.pruned, kept);
    for (auto& each : kept) each |= beyond;
    Writer::template write<Size, InParts>(bits.of, kept, to, place);
  }

  // Blocks that are wider than a vector. The last two vectors may overlap, and are both read before
  // one is written.
  std::uint64_t rank_wide() const {
    constexpr int width = vector_lanes<Int>;
    const Vector<Int> none{};
    Vector<Int> largest{};
    for (std::int64_t b = 0; b < groups_.blocks; ++b) {
      const Int* const from = elements_ + b * groups_.source.block;
      Out* const to = out_ + b * groups_.target.block;
      const std::int64_t last = groups_.lanes - width;
      std::int64_t lane = 0;
      for (; lane + width <= last; lane += width) {
        const Bits bits = load<false>(from + lane, groups_.source);
        rank<false>(bits, none, to + lane, groups_.target, largest);
      }
      const Bits bits = load<false>(from + lane, groups_.source);
      if (lane == last) {
        rank<false>(bits, none, to + lane, groups_.target, largest);
      } else {
        const Bits overlapping = load<false>(from + last, groups_.source);
        rank<false>(bits, none, to + lane, groups_.target, largest);
        rank<false>(overlapping, none, to + last, groups_.target, largest);
      }
    }
    return largest_lane<Int>(largest);
  }

  // Blocks that are narrower than a vector. What lies behind a block is written as it has been
  // read, before it is written itself; the last blocks are ranked in copies.
  template <bool InParts>
  std::uint64_t rank_narrow() const {
    using Lanes = LanesAt<Int, InParts>;
    Vector<Int> beyond{};
    for (int lane = 0; lane < vector_lanes<Int>; ++lane) {
      beyond[lane] = lane % Lanes::lanes < groups_.lanes ? 0 : -1;
    }
    Vector<Int> largest{};
    const std::int64_t others = groups_.blocks - last_blocks(groups_, Lanes::lanes);
    const std::int64_t whole = others / Lanes::blocks * Lanes::blocks;
    Bits bits{};
    if (whole > 0) bits = load<InParts>(elements_, groups_.source);
    for (std::int64_t b = 0; b < whole; b += Lanes::blocks) {
      const Bits now = bits;
      const std::int64_t next = b + Lanes::blocks < whole ? b + Lanes::blocks : b;
      bits = load<InParts>(elements_ + next * groups_.source.block, groups_.source);
      rank<InParts>(now, beyond, out_ + b * groups_.target.block, groups_.target, largest);
    }
    for (std::int64_t b = whole; b < groups_.blocks; ++b) {
      rank_copy(elements_ + b * groups_.source.block, out_ + b * groups_.target.block, largest);
    }
    return largest_lane<Int>(largest);
  }

  void rank_copy(const Int* from, Out* to, Vector<Int>& largest) const {
    constexpr int width = vector_lanes<Int>;
    const auto lanes = static_cast<std::size_t>(groups_.lanes);
    Bits bits;
    for (int i = 0; i < Size; ++i) {
      Int row[width] = {};
      std::memcpy(row, from + i * groups_.source.step, lanes * sizeof(Int));
      bits.of[i] = load_vector<Int>(row);
    }
    Out out[Size * width];
    rank<false>(bits, Vector<Int>{}, out, {0, width}, largest);
    for (int i = 0; i < Size; ++i) {
      std::memcpy(to + i * groups_.target.step, out + i * width, lanes * sizeof(Out));
    }
  }

  const Int* elements_;
  Out* out_;
  const AdjacentGroups groups_;
};

template <class Format, int Size, class Writer>
[[gnu::flatten]] std::uint64_t rank_adjacent_of(const Signed<Format>* from,
                                                typename Writer::Out* to,
                                                const AdjacentGroups& groups) {
  return AdjacentRanking<Format, Size, Writer>(from, to, groups).rank();
}

template <class Format, class Writer>
std::uint64_t rank_adjacent(const Signed<Format>* from, typename Writer::Out* to,
                            const AdjacentGroups& groups) {
  if (groups.size == 2) return rank_adjacent_of<Format, 2, Writer>(from, to, groups);
  if (groups.size == 4) return rank_adjacent_of<Format, 4, Writer>(from, to, groups);
  return rank_adjacent_of<Format, 8, Writer>(from, to, groups);
}

template <class Format>
std::uint64_t mask_lanes(const void* elements, const AdjacentGroups& groups, void* kept) {
  return rank_adjacent<Format, MaskPruned<Format>>(static_cast<const Signed<Format>*>(elements),
                                                   static_cast<std::uint8_t*>(kept), groups);
}

template <class Format>
void zero_lanes(void* elements, const AdjacentGroups& groups) {
  auto* const data = static_cast<Signed<Format>*>(elements);
  rank_adjacent<Format, ZeroPruned<Format>>(data, data, groups);
}
