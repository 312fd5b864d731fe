#include "apply.h"

#include <algorithm>
#include <mutex>

#include "chunks.h"
#include "cpu/kernels.h"
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
      for (; wanted >= counts[digit] && digit + 1 < counts.size(); ++digit) wanted -= counts[digit];
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

// Calls body(source offset, target offset, length, threshold) for runs that make up the chunk:
// their elements with a key below the threshold are pruned.
template <class Body>
void for_each_run(const Layer& source, const Layer& target, const Cut& cut,
                  std::int64_t first_kept_tie, const Chunk& chunk, Body&& body) {
  if (cut.ties == 0) {
    Walk<2>(source.shape, {&source.strides, &target.strides}, Order::memory)
        .runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
          body(at[0], at[1], length, cut.key);
        });
    return;
  }
  // Indices rise along a run, so that the ties that go are at its beginning.
  const Strides indices = row_major_strides(source.shape);
  const Walk<3, 2> walk(source.shape, {&source.strides, &target.strides, &indices}, Order::memory);
  const std::int64_t step = walk.step()[2];
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    const std::int64_t ties_go =
        std::clamp<std::int64_t>((first_kept_tie - at[2] + step - 1) / step, 0, length);
    if (ties_go > 0) body(at[0], at[1], ties_go, cut.key + 1);
    if (ties_go < length) body(at[0] + ties_go, at[1] + ties_go, length - ties_go, cut.key);
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

// Zeroes weights by the magnitudes of their importances.
template <class Format, class Element>
void zero_run(const typename Format::Storage* importance, Element* weights, std::int64_t length,
              std::uint64_t threshold) {
  const auto bound = static_cast<typename Format::Storage>(threshold);
  for (std::int64_t i = 0; i < length; ++i) {
    weights[i] = Format::key(importance[i]) < bound ? Element{0} : weights[i];
  }
}

}  // namespace

void zero(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads) {
  for_each_cut(sources, cuts, threads, [&](const Chunk& chunk, std::int64_t first_kept_tie) {
    const Layer& source = sources[chunk.layer];
    const Layer& target = targets[chunk.layer];
    const Cut& cut = cuts[chunk.layer];
    if (cut.pruned == 0) return;
    with_format(target.dtype, [&](auto target_format) {
      using Element = typename decltype(target_format)::Storage;
      auto* weights = reinterpret_cast<Element*>(target.data);
      if (source.data == target.data) {
        const cpu::Kernels& kernels = cpu::kernels(target.dtype);
        for_each_run(source, target, cut, first_kept_tie, chunk,
                     [&](auto, std::int64_t at, std::int64_t length, std::uint64_t threshold) {
                       kernels.zero(weights + at, length, threshold);
                     });
        return;
      }
      with_format(source.dtype, [&](auto format) {
        using Format = decltype(format);
        const auto* importance = reinterpret_cast<const typename Format::Storage*>(source.data);
        for_each_run(
            source, target, cut, first_kept_tie, chunk,
            [&](std::int64_t from, std::int64_t to, std::int64_t length, std::uint64_t threshold) {
              zero_run<Format>(importance + from, weights + to, length, threshold);
            });
      });
    });
  });
}

void mask(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const std::vector<Cut>& cuts, int threads) {
  for_each_cut(sources, cuts, threads, [&](const Chunk& chunk, std::int64_t first_kept_tie) {
    const Layer& source = sources[chunk.layer];
    const Layer& target = targets[chunk.layer];
    const cpu::Kernels& kernels = cpu::kernels(source.dtype);
    const std::int64_t width = item_size(source.dtype);
    auto* kept = reinterpret_cast<std::uint8_t*>(target.data);
    for_each_run(
        source, target, cuts[chunk.layer], first_kept_tie, chunk,
        [&](std::int64_t from, std::int64_t to, std::int64_t length, std::uint64_t threshold) {
          kernels.mask(source.data + from * width, length, threshold, kept + to);
        });
  });
}

}  // namespace lampfast
