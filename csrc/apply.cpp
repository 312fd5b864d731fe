#include "apply.h"

#include <algorithm>
#include <mutex>
#include <type_traits>

#include "chunks.h"
#include "magnitude.h"
#include "walk.h"

namespace lampfast {
namespace {

// The row-major index from which on the elements equal to the cut's magnitude are kept: that of the
// one after the first `ties`. Found a few bits at a time, so that no list of them is needed.
class TieBoundary {
 public:
  TieBoundary(const Layer& layer, const Cut& cut, int threads)
      : layer_(layer), cut_(cut), threads_(threads), indices_(row_major_strides(layer.shape)) {}

  std::int64_t find() {
    if (cut_.ties == 0) return 0;
    int bits = 0;
    while ((layer_.size - 1) >> bits > 0) ++bits;
    std::int64_t prefix = 0;
    std::int64_t wanted = cut_.ties;  // the wanted-th tie with the prefix is the first one kept
    while (bits > 0) {
      const int digit_bits = std::min(bits, most_digit_bits);
      bits -= digit_bits;
      const std::vector<std::int64_t> counts = count_ties(prefix, bits, digit_bits);
      std::size_t digit = 0;
      for (; wanted >= counts[digit]; ++digit) wanted -= counts[digit];
      prefix = prefix << digit_bits | static_cast<std::int64_t>(digit);
    }
    return prefix;
  }

 private:
  static constexpr int most_digit_bits = 12;

  // For ties whose index starts with the prefix: how many there are by the digit that follows.
  std::vector<std::int64_t> count_ties(std::int64_t prefix, int bits, int digit_bits) const {
    const auto digits = std::size_t{1} << digit_bits;
    std::vector<std::int64_t> counts(digits, 0);
    std::mutex mutex;
    const Walk<2, 1> walk(layer_.shape, {&layer_.strides, &indices_}, Order::memory);
    const std::int64_t step = walk.step()[1];
    Chunk range{0, 0, layer_.size};
    if (walk.is_one_run()) {  // positions are indices
      range.begin = std::min(prefix << (bits + digit_bits), layer_.size);
      range.end = std::min((prefix + 1) << (bits + digit_bits), layer_.size);
    }
    for_each_chunk({range}, threads_, [&](const Chunk& chunk, int) {
      std::vector<std::int64_t> local(digits, 0);
      with_format(layer_.dtype, [&](auto format) {
        using Format = decltype(format);
        using Key = typename Format::Storage;
        const auto* data = reinterpret_cast<const Key*>(layer_.data);
        const auto key = static_cast<Key>(cut_.key);
        walk.runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
          for (std::int64_t i = 0; i < length; ++i) {
            if (Format::key(data[offsets[0] + i]) != key) continue;
            const std::int64_t index = offsets[1] + i * step;
            if (index >> (bits + digit_bits) != prefix) continue;
            ++local[static_cast<std::size_t>(index >> bits) & (digits - 1)];
          }
        });
      });
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t d = 0; d < digits; ++d) counts[d] += local[d];
    });
    return counts;
  }

  const Layer& layer_;
  const Cut& cut_;
  int threads_;
  Strides indices_;
};

template <class Format, class Target, class Write>
void apply_run(const typename Format::Storage* source, Target* target, std::int64_t length,
               typename Format::Storage threshold, Write write) {
  if constexpr (std::is_same_v<Target, typename Format::Storage>) {
    // The same loop through one pointer, which the compiler can vectorise.
    if (source == target) {
      for (std::int64_t i = 0; i < length; ++i) {
        write(target[i], Format::key(target[i]) < threshold);
      }
      return;
    }
  }
  for (std::int64_t i = 0; i < length; ++i) {
    write(target[i], Format::key(source[i]) < threshold);
  }
}

// Calls write(element of the target, whether it is pruned) for all elements.
template <class Target, class Write>
void apply(const Layer& source, const Layer& target, const Cut& cut, std::int64_t first_kept_tie,
           const Chunk& chunk, Write write) {
  const Strides indices = row_major_strides(source.shape);
  with_format(source.dtype, [&](auto format) {
    using Format = decltype(format);
    using Key = typename Format::Storage;
    const auto* keys = reinterpret_cast<const Key*>(source.data);
    auto* out = reinterpret_cast<Target*>(target.data);
    const auto key = static_cast<Key>(cut.key);
    if (cut.ties == 0) {
      Walk<2>(source.shape, {&source.strides, &target.strides}, Order::memory)
          .runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
            apply_run<Format>(keys + at[0], out + at[1], length, key, write);
          });
      return;
    }
    // Indices rise along a run, so that the ties that go are at its beginning.
    const Walk<3, 2> walk(source.shape, {&source.strides, &target.strides, &indices},
                          Order::memory);
    const std::int64_t step = walk.step()[2];
    walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
      const std::int64_t ties_go =
          std::clamp<std::int64_t>((first_kept_tie - at[2] + step - 1) / step, 0, length);
      apply_run<Format>(keys + at[0], out + at[1], ties_go, static_cast<Key>(key + 1), write);
      apply_run<Format>(keys + at[0] + ties_go, out + at[1] + ties_go, length - ties_go, key,
                        write);
    });
  });
}

// Calls visit(chunk, index of the first kept tie) for chunks of all layers.
template <class Visit>
void for_each_cut(const std::vector<Layer>& sources, const std::vector<Cut>& cuts, int threads,
                  Visit&& visit) {
  std::vector<std::int64_t> first_kept_ties(sources.size());
  for (std::size_t i = 0; i < sources.size(); ++i) {
    first_kept_ties[i] = TieBoundary(sources[i], cuts[i], threads).find();
  }
  for_each_chunk(whole(sources), threads,
                 [&](const Chunk& chunk, int) { visit(chunk, first_kept_ties[chunk.layer]); });
}

template <class Element>
void zero_chunk(const Layer& source, const Layer& target, const Cut& cut,
                std::int64_t first_kept_tie, const Chunk& chunk) {
  apply<Element>(source, target, cut, first_kept_tie, chunk,
                 [](Element& weight, bool pruned) { weight = pruned ? Element{0} : weight; });
}

}  // namespace

void zero(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads) {
  for_each_cut(sources, cuts, threads, [&](const Chunk& chunk, std::int64_t first_kept_tie) {
    const std::size_t i = chunk.layer;
    if (cuts[i].pruned == 0) return;
    with_format(targets[i].dtype, [&](auto format) {
      zero_chunk<typename decltype(format)::Storage>(sources[i], targets[i], cuts[i],
                                                     first_kept_tie, chunk);
    });
  });
}

void mask(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads) {
  for_each_cut(sources, cuts, threads, [&](const Chunk& chunk, std::int64_t first_kept_tie) {
    const std::size_t i = chunk.layer;
    apply<std::uint8_t>(sources[i], targets[i], cuts[i], first_kept_tie, chunk,
                        [](std::uint8_t& kept, bool pruned) { kept = pruned ? 0 : 1; });
  });
}

}  // namespace lampfast
