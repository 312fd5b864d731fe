// n:m patterns in host memory: of each group, the elements that are largest stay. A mask is written
// while the layer is read for the first and only time; zeroes are written by the commit, which
// allocates nothing and cannot fail.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/group_pattern.h"
#include "core/key_format.h"
#include "core/not_finite.h"
#include "core/strided_walk.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

using GroupWalk = StridedWalk<2, 0>;

GroupWalk walk_of(const GroupBox& box) noexcept {
  return {box.shape, {&box.source.strides, &box.target.strides}, Order::memory};
}

// Whether the groups lie one behind the other, in the layer and in its target.
bool is_dense(const GroupBox& box, const GroupWalk& walk) noexcept {
  return box.source.step == 1 && box.target.step == 1 && walk.is_one_run() &&
         (box.count == 1 || (walk.step()[0] == box.size && walk.step()[1] == box.size));
}

// Groups that are ranked together, wherever they lie.
template <class Format>
class Tile {
 public:
  using Key = typename Format::Storage;

  Tile(const GroupBox& box, const Kernels& kernels) noexcept : box_(box), kernels_(kernels) {}

  bool is_full() const noexcept { return count_ == group_tile; }

  // Takes as many as there is room for of `length` evenly spaced groups. Returns how many.
  std::int64_t take(const Key* source, std::int64_t source_step, std::int64_t target,
                    std::int64_t target_step, std::int64_t length) noexcept {
    const auto taken = static_cast<int>(std::min<std::int64_t>(length, group_tile - count_));
    for (int i = 0; i < box_.size; ++i) {
      const Key* const from = source + i * box_.source.step;
      Key* const to = keys_ + i * group_tile + count_;
      if (source_step == 1) {
        for (int g = 0; g < taken; ++g) to[g] = Format::key(from[g]);
      } else {
        for (int g = 0; g < taken; ++g) to[g] = Format::key(from[g * source_step]);
      }
    }
    runs_[run_count_++] = {count_, taken, target, target_step};
    count_ += taken;
    return taken;
  }

  // Ranks the groups, and calls body(kept, offset, step, length) for evenly spaced elements of the
  // target, which are kept where `kept` is not 0. Returns the largest key.
  template <class Body>
  std::uint64_t rank(Body&& body) noexcept {
    // What is left of earlier groups only makes the largest key larger than it is.
    for (int i = 0; i < box_.size; ++i) {
      std::fill(keys_ + i * group_tile + count_, keys_ + (i + 1) * group_tile, Key{0});
    }
    const std::uint64_t largest =
        kernels_.rank_groups(keys_, box_.size, box_.size - box_.kept, kept_);
    for (int r = 0; r < run_count_; ++r) {
      const Run& run = runs_[r];
      for (int i = 0; i < box_.size; ++i) {
        body(kept_ + i * group_tile + run.first, run.target + i * box_.target.step, run.step,
             run.length);
      }
    }
    count_ = run_count_ = 0;
    return largest;
  }

 private:
  struct Run {
    int first;  // of its groups in the tile
    int length;
    std::int64_t target;
    std::int64_t step;
  };

  const GroupBox& box_;
  const Kernels& kernels_;
  int count_ = 0;
  int run_count_ = 0;
  Run runs_[group_tile];
  Key keys_[GroupPattern::most_size * group_tile];
  Key kept_[GroupPattern::most_size * group_tile];
};

// Ranks the chunk's groups, and calls body as Tile::rank does. Returns the largest key.
template <class Format, class Body>
std::uint64_t rank_chunk(const Kernels& kernels, const GroupBox& box, const GroupWalk& walk,
                         const Chunk& chunk, const typename Format::Storage* source,
                         Body&& body) noexcept {
  Tile<Format> tile(box, kernels);
  std::uint64_t largest = 0;
  const auto& step = walk.step();
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    auto offsets = at;
    while (length > 0) {
      const std::int64_t taken =
          tile.take(source + offsets[0], step[0], offsets[1], step[1], length);
      for (std::size_t t = 0; t < offsets.size(); ++t) offsets[t] += taken * step[t];
      length -= taken;
      if (tile.is_full()) largest = std::max(largest, tile.rank(body));
    }
  });
  return std::max(largest, tile.rank(body));
}

// Calls body(element, whether it is kept) for evenly spaced elements.
template <class Element, class Key, class Body>
void for_each_element(Element* elements, std::int64_t step, const Key* kept, int length,
                      Body&& body) noexcept {
  if (step == 1) {  // for the compiler, which then vectorises it
    for (int g = 0; g < length; ++g) body(elements[g], kept[g]);
  } else {
    for (int g = 0; g < length; ++g) body(elements[g * step], kept[g]);
  }
}

// Writes the mask of the chunk's groups. Returns the largest key.
std::uint64_t mask_chunk(const Layer& layer, const Layer& mask, const GroupBox& box,
                         const Chunk& chunk) noexcept {
  auto* const kept = reinterpret_cast<std::uint8_t*>(mask.data) + box.target.begin;
  const GroupWalk walk = walk_of(box);
  const Kernels& kernels = kernels_for(layer.dtype);
  return with_format(layer.dtype, [&](auto format) {
    using Format = decltype(format);
    const auto* source =
        reinterpret_cast<const typename Format::Storage*>(layer.data) + box.source.begin;
    const DenseGroups dense = kernels.dense_groups(box.size);
    if (dense.mask != nullptr && is_dense(box, walk)) {
      return dense.mask(source + chunk.begin * box.size, chunk.end - chunk.begin,
                        box.size - box.kept, kept + chunk.begin * box.size);
    }
    return rank_chunk<Format>(
        kernels, box, walk, chunk, source,
        [&](const auto* is_kept, std::int64_t offset, std::int64_t step, int length) {
          for_each_element(kept + offset, step, is_kept, length,
                           [](std::uint8_t& byte, auto bits) { byte = bits & 1; });
        });
  });
}

void zero_chunk(const Layer& layer, const Layer& target, const GroupBox& box,
                const Chunk& chunk) noexcept {
  const GroupWalk walk = walk_of(box);
  const Kernels& kernels = kernels_for(layer.dtype);
  with_format(target.dtype, [&](auto target_format) {
    auto* const weights =
        reinterpret_cast<typename decltype(target_format)::Storage*>(target.data) +
        box.target.begin;
    const DenseGroups dense = kernels.dense_groups(box.size);
    if (dense.zero != nullptr && layer.data == target.data && is_dense(box, walk)) {
      return dense.zero(weights + chunk.begin * box.size, chunk.end - chunk.begin,
                        box.size - box.kept);
    }
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* source =
          reinterpret_cast<const typename Format::Storage*>(layer.data) + box.source.begin;
      rank_chunk<Format>(
          kernels, box, walk, chunk, source,
          [&](const auto* is_kept, std::int64_t offset, std::int64_t step, int length) {
            for_each_element(weights + offset, step, is_kept, length, [](auto& weight, auto bits) {
              using Element = std::decay_t<decltype(weight)>;
              // Without a branch, which costs more.
              weight &= static_cast<Element>(Element{0} - static_cast<Element>(bits & 1));
            });
          });
    });
  });
}

std::vector<GroupBox> boxes_of(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                               const LayerIds& ids, const std::vector<GroupPattern>& patterns) {
  std::vector<GroupBox> boxes;
  for (const std::size_t id : ids) {
    const std::vector<GroupBox> found =
        lampfast::boxes_of(id, layers[id], targets[id], patterns[id]);
    boxes.insert(boxes.end(), found.begin(), found.end());
  }
  return boxes;
}

// Chunks of groups; a chunk's position is that of its box.
std::vector<Chunk> cut(const std::vector<GroupBox>& boxes) {
  std::vector<Chunk> chunks;
  for (std::size_t b = 0; b < boxes.size(); ++b) {
    const GroupBox& box = boxes[b];
    const std::int64_t groups = std::max<std::int64_t>(chunk_size / box.size, 1);
    for (std::int64_t begin = 0; begin < box.count; begin += groups) {
      chunks.push_back({box.layer, b, begin, std::min(begin + groups, box.count)});
    }
  }
  return chunks;
}

std::int64_t total_size(const std::vector<GroupBox>& boxes) {
  std::int64_t total = 0;
  for (const GroupBox& box : boxes) total += box.count * box.size;
  return total;
}

}  // namespace

void HostBackend::mask_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) {
  const std::vector<GroupBox> boxes = boxes_of(layers_, targets_, ids, patterns);
  const std::vector<Chunk> chunks = cut(boxes);
  std::atomic<bool> are_finite{true};
  pool_.for_each(static_cast<std::int64_t>(chunks.size()), total_size(boxes),
                 [&](std::int64_t task, int) {
                   const Chunk& chunk = chunks[static_cast<std::size_t>(task)];
                   const Layer& layer = layers_[chunk.layer];
                   const std::uint64_t largest =
                       mask_chunk(layer, targets_[chunk.layer], boxes[chunk.position], chunk);
                   if (largest >= not_finite_key(layer.dtype)) are_finite = false;
                 });
  if (!are_finite) throw NotFinite();
}

void HostBackend::prepare_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) {
  pending_ = {};
  pending_.boxes = boxes_of(layers_, targets_, ids, patterns);
  pending_.chunks = cut(pending_.boxes);
  pending_.size = total_size(pending_.boxes);
  pool_.start_helpers(static_cast<std::int64_t>(pending_.chunks.size()), pending_.size);
}

void HostBackend::commit_groups(const Chunk& chunk) noexcept {
  zero_chunk(layers_[chunk.layer], targets_[chunk.layer], pending_.boxes[chunk.position], chunk);
}

}  // namespace lampfast::cpu
