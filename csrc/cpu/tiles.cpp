// Reads and writes tiles in host memory. Each tile belongs to one task, whose rows follow the
// memory: squares are added up by column first, in the cache, and then by tile.
#include "cpu/tiles.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <mutex>
#include <utility>

#include "core/compensated_sum.h"
#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/not_finite.h"
#include "core/superaccumulator.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/kernels/kernels.h"
#include "cpu/large_pages.h"

namespace lampfast::cpu {
namespace {

// How many columns are added up at a time, and the least that a task should have.
constexpr std::int64_t strip = test_sizes ? 16 : 1024;
constexpr std::int64_t least_width = test_sizes ? 4 : 512;
constexpr std::int64_t most_terms = test_sizes ? 32 : error_bounds::most_plain_terms;
static_assert(strip <= most_terms && most_terms <= error_bounds::most_plain_terms);

using SideWalk = StridedWalk<1, 0>;

SideWalk walk_of(const TileSide& side) noexcept {
  return {side.shape, {&side.strides}, Order::row_major};
}

std::vector<Tiling> tilings_of(const std::vector<Layer>& layers,
                               const std::vector<BlockShape>& blocks) {
  std::vector<Tiling> tilings;
  tilings.reserve(layers.size());
  for (std::size_t i = 0; i < layers.size(); ++i) tilings.emplace_back(layers[i], blocks[i]);
  return tilings;
}

std::vector<TilePart> parts_of(const std::vector<Tiling>& tilings) {
  std::vector<TilePart> parts;
  for (std::size_t i = 0; i < tilings.size(); ++i) {
    const Tiling& tiling = tilings[i];
    if (tiling.grid.count() == 0) continue;
    const TileSide& outer = tiling.outer;
    const TileSide& inner = tiling.inner;
    const std::int64_t fitting = std::max(chunk_size / outer.length, least_width) / inner.length;
    const std::int64_t width = std::clamp<std::int64_t>(fitting, 1, inner.tiles);
    const std::int64_t elements = std::min(width * inner.length, inner.extent) * outer.length;
    const std::int64_t height = std::max<std::int64_t>(chunk_size / elements, 1);
    for (std::int64_t o = 0; o < outer.tiles; o += height) {
      for (std::int64_t n = 0; n < inner.tiles; n += width) {
        parts.push_back(
            {i, o, std::min(o + height, outer.tiles), n, std::min(n + width, inner.tiles)});
      }
    }
  }
  return parts;
}

std::int64_t total_size(const std::vector<Layer>& layers) {
  std::int64_t size = 0;
  for (const Layer& layer : layers) size += layer.size;
  return size;
}

// Calls body(part) for all parts, on the threads of the pool.
template <class Body>
void for_each_part(const std::vector<TilePart>& parts, std::int64_t size, ThreadPool& pool,
                   const Body& body) {
  const auto task = [&](std::int64_t i, int) noexcept(noexcept(body(parts[0]))) {
    body(parts[static_cast<std::size_t>(i)]);
  };
  pool.for_each(static_cast<std::int64_t>(parts.size()), size, task);
}

// Calls body(offset) for the rows [begin, end) of the outer side.
template <class Body>
void for_each_row(const SideWalk& walk, std::int64_t begin, std::int64_t end,
                  const Body& body) noexcept(noexcept(body(begin))) {
  const std::int64_t step = walk.step()[0];
  walk.runs(begin, end, [&](auto, const auto& at, std::int64_t length) {
    for (std::int64_t i = 0; i < length; ++i) body(at[0] + i * step);
  });
}

// The elements [begin, end) of a row, one after the other: where they lie, or as a copy.
template <class Key>
const Key* load(const Key* row, const SideWalk& walk, std::int64_t begin, std::int64_t end,
                Key* buffer) noexcept {
  const std::int64_t step = walk.step()[0];
  if (walk.is_one_run() && step == 1) return row + begin;
  Key* to = buffer;
  walk.runs(begin, end, [&](auto, const auto& at, std::int64_t length) {
    const Key* from = row + at[0];
    for (std::int64_t i = 0; i < length; ++i) *to++ = from[i * step];
  });
  return buffer;
}

template <int count>
double plain_sum(const double* terms) noexcept {
  if constexpr (count == 1) {
    return terms[0];
  } else {
    return plain_sum<count / 2>(terms) + plain_sum<count - count / 2>(terms + count / 2);
  }
}

double plain_sum(const double* terms, std::int64_t count) noexcept {
  if (count < 8) {
    double sum = terms[0];
    for (std::int64_t i = 1; i < count; ++i) sum += terms[i];
    return sum;
  }
  double lanes[8] = {};  // so that an addition need not wait for the one before it
  std::int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (int lane = 0; lane < 8; ++lane) lanes[lane] += terms[i + lane];
  }
  for (; i < count; ++i) lanes[0] += terms[i];
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
         ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// Writes the sums of tiles of so many columns each. Returns 0, or NaN if one is not finite.
template <int length>
double add_equal(const double* squares, std::int64_t tiles, double* to,
                 std::int64_t step) noexcept {
  double check = 0.0;
  for (std::int64_t i = 0; i < tiles; ++i) {
    const double sum = plain_sum<length>(squares + i * length);
    to[i * step] = sum;
    check += sum * 0.0;
  }
  return check;
}

using AddEqual = double (*)(const double*, std::int64_t, double*, std::int64_t) noexcept;

// The function for tiles of so many columns, if these are usual.
AddEqual add_equal_for(std::int64_t length) noexcept {
  switch (length) {
    case 1:
      return add_equal<1>;
    case 2:
      return add_equal<2>;
    case 4:
      return add_equal<4>;
    case 8:
      return add_equal<8>;
    case 16:
      return add_equal<16>;
    case 32:
      return add_equal<32>;
    default:
      return nullptr;
  }
}

// Adds up the tiles of a part: all that lie between the same rows at a time.
template <class Format>
class PartSum {
 public:
  using Key = typename Format::Storage;

  PartSum(const Layer& layer, const Tiling& tiling, const TilePart& part, double scale)
      : data_(reinterpret_cast<const Key*>(layer.data)),
        outer_(tiling.outer),
        inner_(tiling.inner),
        part_(part),
        scale_(scale),
        kernels_(kernels_for(layer.dtype)),
        rows_(walk_of(outer_)),
        columns_(walk_of(inner_)) {
    const std::int64_t across = std::min(inner_.length, strip);
    height_ = std::min(most_terms / across, outer_.length);
    is_whole_ = height_ == outer_.length && inner_.length <= strip;
    add_equal_ = is_whole_ ? add_equal_for(inner_.length) : nullptr;
    width_ = inner_.length <= strip ? strip / inner_.length * inner_.length : inner_.length;
    if (!is_whole_) sums_.resize(static_cast<std::size_t>(part.inner_end - part.inner_begin));
  }

  // Writes the sums by the tiles' numbers. Returns whether all are finite.
  bool write(double* sums) {
    bool is_finite = true;
    for (std::int64_t o = part_.outer_begin; o < part_.outer_end; ++o) {
      double* const to = sums + o * outer_.number_step;
      std::fill(sums_.begin(), sums_.end(), CompensatedSum());
      const std::int64_t end = outer_.end(o);
      for (std::int64_t row = outer_.begin(o); row < end; row += height_) {
        is_finite &= add_rows(row, std::min(row + height_, end), to);
      }
      for (std::size_t i = 0; i < sums_.size(); ++i) {
        const double sum = sums_[i].value();
        is_finite &= std::isfinite(sum);
        to[(part_.inner_begin + static_cast<std::int64_t>(i)) * inner_.number_step] = sum;
      }
    }
    return is_finite;
  }

 private:
  bool add_rows(std::int64_t first, std::int64_t last, double* to) {
    bool is_finite = true;
    const std::int64_t end = inner_.end(part_.inner_end - 1);
    for (std::int64_t begin = inner_.begin(part_.inner_begin); begin < end;) {
      // To the end of a tile, or of the strip.
      const std::int64_t limit = std::min((begin / width_ + 1) * width_, end);
      const std::int64_t stop = std::min(begin + strip, limit);
      const std::int64_t count = stop - begin;
      std::fill_n(squares_.data(), count, 0.0);
      for_each_row(rows_, first, last, [&](std::int64_t offset) {
        const Key* keys = load(data_ + offset, columns_, begin, stop, keys_.data());
        kernels_.add_squares(keys, count, scale_, squares_.data());
      });
      is_finite &= add_strip(begin, count, to);
      begin = stop;
    }
    return is_finite;
  }

  // Adds up the squares of a strip by tile.
  bool add_strip(std::int64_t begin, std::int64_t count, double* to) {
    bool is_finite = true;
    std::int64_t tile = begin / inner_.length;
    std::int64_t i = 0;
    if (add_equal_ != nullptr) {
      const std::int64_t tiles = count / inner_.length;
      const std::int64_t step = inner_.number_step;
      is_finite = add_equal_(squares_.data(), tiles, to + tile * step, step) == 0.0;
      tile += tiles;
      i = tiles * inner_.length;
    }
    for (; i < count; ++tile) {
      const std::int64_t length = std::min(inner_.end(tile) - (begin + i), count - i);
      const double sum = plain_sum(squares_.data() + i, length);
      if (is_whole_) {
        is_finite &= std::isfinite(sum);
        to[tile * inner_.number_step] = sum;
      } else {
        sums_[static_cast<std::size_t>(tile - part_.inner_begin)].add(sum);
      }
      i += length;
    }
    return is_finite;
  }

  const Key* data_;
  const TileSide& outer_;
  const TileSide& inner_;
  const TilePart& part_;
  double scale_;
  const Kernels& kernels_;
  SideWalk rows_;
  SideWalk columns_;
  std::int64_t height_;  // rows that are added up by column at a time
  std::int64_t width_;   // strips end at multiples of it
  bool is_whole_;        // whether each tile is one plain sum
  AddEqual add_equal_;
  std::vector<CompensatedSum> sums_;
  std::array<double, strip> squares_;
  std::array<Key, strip> keys_;
};

// Adds the exact squares of a tile, which is given by its place along both sides.
template <class Format>
void add_exactly(const Layer& layer, const Tiling& tiling, std::int64_t o, std::int64_t n,
                 Superaccumulator<Format>& sum) {
  const auto* data = reinterpret_cast<const typename Format::Storage*>(layer.data);
  const SideWalk rows = walk_of(tiling.outer);
  const SideWalk columns = walk_of(tiling.inner);
  const std::int64_t step = columns.step()[0];
  for_each_row(rows, tiling.outer.begin(o), tiling.outer.end(o), [&](std::int64_t offset) {
    columns.runs(tiling.inner.begin(n), tiling.inner.end(n),
                 [&](auto, const auto& at, std::int64_t length) {
                   const auto* run = data + offset + at[0];
                   for (std::int64_t i = 0; i < length; ++i) {
                     const auto key = Format::key(run[i * step]);
                     if (key < Format::not_finite) sum.add_square(key);
                   }
                 });
  });
}

template <class Element>
void fill(Element* row, const SideWalk& walk, std::int64_t begin, std::int64_t end,
          Element value) noexcept {
  const std::int64_t step = walk.step()[0];
  walk.runs(begin, end, [&](auto, const auto& at, std::int64_t length) {
    Element* const to = row + at[0];
    if (step == 1) {
      std::fill_n(to, length, value);
    } else {
      for (std::int64_t i = 0; i < length; ++i) to[i * step] = value;
    }
  });
}

// Gives the elements of tiles that go the value 0, and where `writes_ones` those of others 1.
template <class Element, bool writes_ones>
void write_part(const Layer& target, const Tiling& tiling, const std::vector<Fate>& fates,
                const TilePart& part) noexcept {
  auto* const data = reinterpret_cast<Element*>(target.data);
  const TileSide& outer = tiling.outer;
  const TileSide& inner = tiling.inner;
  const SideWalk rows = walk_of(outer);
  const SideWalk columns = walk_of(inner);
  for (std::int64_t o = part.outer_begin; o < part.outer_end; ++o) {
    const Fate* const fate = fates.data() + o * outer.number_step;
    for_each_row(rows, outer.begin(o), outer.end(o), [&](std::int64_t offset) noexcept {
      for (std::int64_t n = part.inner_begin; n < part.inner_end;) {
        const bool goes = fate[n * inner.number_step] == Fate::goes;
        const std::int64_t first = n;
        do {
          ++n;
        } while (n < part.inner_end && (fate[n * inner.number_step] == Fate::goes) == goes);
        if (goes || writes_ones) {
          const auto value = static_cast<Element>(goes ? 0 : 1);
          fill(data + offset, columns, inner.begin(first), inner.end(n - 1), value);
        }
      }
    });
  }
}

}  // namespace

Tiles::Tiles(const std::vector<Layer>& layers, const std::vector<BlockShape>& blocks,
             ThreadPool& pool)
    : layers_(layers), tilings_(tilings_of(layers, blocks)), pool_(pool) {}

std::vector<TileSums> Tiles::sums(const std::vector<double>& scales) const {
  std::vector<TileSums> sums;
  sums.reserve(layers_.size());
  for (const Tiling& tiling : tilings_) {
    const auto count = static_cast<std::size_t>(tiling.grid.count());
    sums.emplace_back(new double[count]);
    use_large_pages(sums.back().get(), count * sizeof(double));
  }
  for_each_part(parts_of(tilings_), total_size(layers_), pool_, [&](const TilePart& part) {
    const Layer& layer = layers_[part.layer];
    with_format(layer.dtype, [&](auto format) {
      PartSum<decltype(format)> sum(layer, tilings_[part.layer], part, scales[part.layer]);
      if (!sum.write(sums[part.layer].get())) throw NotFinite();
    });
  });
  return sums;
}

BigUint Tiles::sum_of(std::size_t layer, std::int64_t tile) const {
  const Tiling& tiling = tilings_[layer];
  const std::pair<std::int64_t, std::int64_t> place = tiling.place_of(tile);
  return with_format(layers_[layer].dtype, [&](auto format) {
    Superaccumulator<decltype(format)> sum;
    add_exactly(layers_[layer], tiling, place.first, place.second, sum);
    return sum.total();
  });
}

BigUint Tiles::sum_of_staying(std::size_t layer, const std::vector<Fate>& fates) const {
  const Tiling& tiling = tilings_[layer];
  std::vector<TilePart> parts = parts_of(tilings_);
  parts.erase(std::remove_if(parts.begin(), parts.end(),
                             [&](const TilePart& part) { return part.layer != layer; }),
              parts.end());
  BigUint total;
  std::mutex mutex;
  for_each_part(parts, layers_[layer].size, pool_, [&](const TilePart& part) {
    with_format(layers_[layer].dtype, [&](auto format) {
      Superaccumulator<decltype(format)> sum;
      for (std::int64_t o = part.outer_begin; o < part.outer_end; ++o) {
        for (std::int64_t n = part.inner_begin; n < part.inner_end; ++n) {
          const std::int64_t tile = o * tiling.outer.number_step + n * tiling.inner.number_step;
          if (fates[static_cast<std::size_t>(tile)] == Fate::stays) {
            add_exactly(layers_[layer], tiling, o, n, sum);
          }
        }
      }
      const BigUint found = sum.total();
      const std::lock_guard<std::mutex> lock(mutex);
      total += found;
    });
  });
  return total;
}

TileWriter::TileWriter(const std::vector<Layer>& targets, const std::vector<BlockShape>& blocks,
                       const Fates& fates, ThreadPool& pool)
    : targets_(targets),
      fates_(fates),
      tilings_(tilings_of(targets, blocks)),
      parts_(parts_of(tilings_)),
      pool_(pool) {
  for (const Layer& target : targets_) {
    const bool is_mask = target.dtype == Dtype::boolean;
    if (is_mask && is_row_major(target.shape, target.strides)) {
      use_large_pages(target.data, static_cast<std::size_t>(target.size));
    }
  }
  pool_.start_helpers(static_cast<std::int64_t>(parts_.size()), total_size(targets_));
}

void TileWriter::write() noexcept {
  for_each_part(parts_, total_size(targets_), pool_, [&](const TilePart& part) noexcept {
    const Layer& target = targets_[part.layer];
    const Tiling& tiling = tilings_[part.layer];
    const std::vector<Fate>& fates = fates_[part.layer];
    if (target.dtype == Dtype::boolean) {
      return write_part<std::uint8_t, true>(target, tiling, fates, part);
    }
    with_format(target.dtype, [&](auto format) {
      write_part<typename decltype(format)::Storage, false>(target, tiling, fates, part);
    });
  });
}

}  // namespace lampfast::cpu
