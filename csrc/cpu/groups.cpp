// n:m patterns in host memory: of each group, the elements that are largest stay. A mask is written
// while the layer is read for the first and only time; zeroes are written by the commit, which
// allocates nothing and cannot fail.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/group_pattern.h"
#include "core/key_format.h"
#include "core/not_finite.h"
#include "core/strided_walk.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"
#include "cpu/large_pages.h"

namespace lampfast::cpu {
namespace {

using GroupWalk = StridedWalk<2, 0>;
using Offsets = GroupWalk::Offsets;

// A tensor that groups are read from or written to. A mask has the kernels of any type of one byte.
struct GroupTensor {
  std::byte* data;
  std::int64_t item;
  const Kernels& kernels;

  GroupTensor(const Layer& tensor, std::int64_t begin) noexcept
      : item(item_size(tensor.dtype)),
        kernels(kernels_for(tensor.dtype == Dtype::boolean ? Dtype::float8_e5m2 : tensor.dtype)) {
    data = tensor.data + begin * item;
  }
  std::byte* at(std::int64_t offset) const noexcept { return data + offset * item; }
};

// Groups that are ranked together. Those whose elements are adjacent are copied as lines, others as
// rows.
class Tile {
 public:
  Tile(const Layer& layer, const Layer& target, const GroupBox& box, const GroupWalk& walk) noexcept
      : box_(box),
        step_(walk.step()),
        source_(layer, box.source.begin),
        target_(target, box.target.begin),
        is_mask_(target.dtype == Dtype::boolean),
        is_in_place_(layer.data == target.data && layer.dtype == target.dtype &&
                     layer.strides == target.strides),
        row_lanes_(std::max(static_cast<int>(row_bytes / std::max(source_.item, target_.item)),
                            group_lines)) {
    if (box.source.step != box.target.step) return;
    if (box.source.step == 1) {
      join((least_columns + box.size - 1) / box.size);
    } else if (step_ == Offsets{1, 1}) {
      interleave(box.source.step);
    }
  }

  // Takes evenly spaced groups, and ranks those that fill the tile.
  void add(const Offsets& at, std::int64_t count) noexcept {
    const bool are_lines = per_line_ > 0 && count >= per_line_;
    if (are_lines != has_lines_) rank();
    has_lines_ = are_lines;
    if (!are_lines) return add_rows(at, count);
    add_lines(at, count / per_line_);
    if (count % per_line_ == 0) return;
    // So that the last line is whole, some groups are ranked twice. They keep the same elements, as
    // ranks stay the same when what has been pruned is zero.
    add_lines(moved(at, count - per_line_), 1);
  }

  // Ranks the groups that are left. Returns the largest key of all.
  std::uint64_t finish() noexcept {
    rank();
    return largest_;
  }

 private:
  static constexpr int most_size = GroupPattern::most_size;
  static constexpr int least_columns = 16;
  // Short rows, as each is at another place in memory.
  static constexpr int row_bytes = 256;
  static constexpr int most_lanes = row_bytes;
  static constexpr int most_columns = 9 * most_size;  // kernels of 3 by 3
  static constexpr int tile_bytes = 3 << 15;

  struct Run {
    int first;  // of its lanes
    int count;
    std::int64_t target;
  };

  // A line has so many groups, one behind the other.
  void join(int groups) noexcept {
    const bool is_dense = step_[0] == box_.size && step_[1] == box_.size;
    if (groups > 1 && !is_dense) return;
    per_line_ = groups;
    for (int c = 0; c < columns(); ++c) {
      places_[c] = (c % box_.size * groups + c / box_.size) * group_lines;
    }
  }

  // A line has the elements of so many groups in turns, as the input channels of a convolution.
  void interleave(std::int64_t groups) noexcept {
    const std::int64_t columns = groups * box_.size;
    const std::int64_t bytes = columns * group_lines * std::max(source_.item, target_.item);
    if (columns < least_columns || columns > most_columns || bytes > tile_bytes) return;
    per_line_ = static_cast<int>(groups);
    for (int c = 0; c < columns; ++c) places_[c] = c * group_lines;
  }

  int columns() const noexcept { return per_line_ * box_.size; }

  Offsets moved(Offsets at, std::int64_t groups) const noexcept {
    for (std::size_t t = 0; t < at.size(); ++t) at[t] += groups * step_[t];
    return at;
  }

  void add_lines(Offsets at, std::int64_t count) noexcept {
    for (; count > 0; --count, at = moved(at, per_line_)) {
      source_lines_[used_] = source_.at(at[0]);
      target_lines_[used_++] = target_.at(at[1]);
      if (used_ == group_lines) rank();
    }
  }

  void add_rows(Offsets at, std::int64_t count) noexcept {
    while (count > 0) {
      const auto taken = static_cast<int>(std::min<std::int64_t>(count, row_lanes_ - used_));
      source_.kernels.load_rows(source_.at(at[0]), {box_.size, box_.source.step, taken, step_[0]},
                                elements_ + used_ * source_.item, row_lanes_);
      runs_[run_count_++] = {used_, taken, at[1]};
      used_ += taken;
      count -= taken;
      at = moved(at, taken);
      if (used_ == row_lanes_) rank();
    }
  }

  void rank() noexcept {
    if (used_ > 0) has_lines_ ? rank_lines() : rank_rows();
    used_ = run_count_ = 0;
  }

  void rank_lines() noexcept {
    std::fill(source_lines_ + used_, source_lines_ + group_lines, source_lines_[0]);
    std::fill(target_lines_ + used_, target_lines_ + group_lines, target_lines_[0]);
    source_.kernels.load_lines(source_lines_, columns(), places_, elements_);
    rank_lanes(per_line_ * group_lines, per_line_ * group_lines);
    if (!is_mask_ && !is_in_place_) {
      target_.kernels.load_lines(target_lines_, columns(), places_, elements_);
    }
    if (!is_mask_) target_.kernels.keep(elements_, kept_, columns() * group_lines);
    target_.kernels.store_lines(result(), columns(), places_, target_lines_);
  }

  void rank_rows() noexcept {
    const int count = (used_ + group_lines - 1) / group_lines * group_lines;
    for (int i = 0; i < box_.size; ++i) {
      std::byte* const row = elements_ + i * row_lanes_ * source_.item;
      std::fill(row + used_ * source_.item, row + count * source_.item, std::byte{0});
    }
    rank_lanes(row_lanes_, count);
    if (!is_mask_ && !is_in_place_) {
      for_each_run([&](std::byte* target, const GroupRows& rows, std::int64_t at) {
        target_.kernels.load_rows(target, rows, elements_ + at, row_lanes_);
      });
    }
    for (int i = 0; i < box_.size && !is_mask_; ++i) {
      const std::int64_t row = i * row_lanes_;
      target_.kernels.keep(elements_ + row * target_.item, kept_ + row, used_);
    }
    for_each_run([&](std::byte* target, const GroupRows& rows, std::int64_t at) {
      target_.kernels.store_rows(result() + at, row_lanes_, target, rows);
    });
  }

  void rank_lanes(int lanes, int count) noexcept {
    largest_ = std::max(largest_, source_.kernels.rank_groups(elements_, lanes, count, box_.size,
                                                              box_.size - box_.kept, kept_));
  }

  // Calls body(its memory in the target, its rows, its bytes in the tile) for each run.
  template <class Body>
  void for_each_run(Body&& body) noexcept {
    for (int r = 0; r < run_count_; ++r) {
      const Run& run = runs_[r];
      body(target_.at(run.target), GroupRows{box_.size, box_.target.step, run.count, step_[1]},
           run.first * target_.item);
    }
  }

  const std::byte* result() const noexcept {
    return is_mask_ ? reinterpret_cast<const std::byte*>(kept_) : elements_;
  }

  const GroupBox& box_;
  const Offsets step_;
  const GroupTensor source_;
  const GroupTensor target_;
  const bool is_mask_;
  const bool is_in_place_;
  const int row_lanes_;
  int per_line_ = 0;  // groups; 0 if they cannot be copied as lines
  bool has_lines_ = false;
  int used_ = 0;  // lines or lanes
  int run_count_ = 0;
  std::uint64_t largest_ = 0;
  int places_[most_columns];
  const void* source_lines_[group_lines];
  void* target_lines_[group_lines];
  Run runs_[most_lanes];
  alignas(64) std::byte elements_[tile_bytes];
  alignas(64) std::uint8_t kept_[most_columns * group_lines];
};

// Whether the groups lie one behind the other, in the layer and in its target.
bool is_dense(const GroupBox& box, const GroupWalk& walk) noexcept {
  return box.source.step == 1 && box.target.step == 1 && walk.is_one_run() &&
         (box.count == 1 || walk.step() == Offsets{box.size, box.size});
}

// Ranks the chunk's groups, and writes their mask or zeroes what is pruned. Returns the largest
// key.
std::uint64_t rank_chunk(const Layer& layer, const Layer& target, const GroupBox& box,
                         const Chunk& chunk) noexcept {
  const GroupWalk walk(box.shape, {&box.source.strides, &box.target.strides}, Order::memory);
  const DenseGroups dense = kernels_for(layer.dtype).dense_groups(box.size);
  if (dense.mask != nullptr && is_dense(box, walk)) {
    const GroupTensor source(layer, box.source.begin + chunk.begin * box.size);
    const GroupTensor written(target, box.target.begin + chunk.begin * box.size);
    const std::int64_t groups = chunk.end - chunk.begin;
    const int pruned = box.size - box.kept;
    if (target.dtype == Dtype::boolean) {
      return dense.mask(source.data, groups, pruned, written.data);
    }
    if (written.data == source.data && target.dtype == layer.dtype) {
      return dense.zero(written.data, groups, pruned);
    }
  }
  Tile tile(layer, target, box, walk);
  walk.runs(chunk.begin, chunk.end,
            [&](auto, const Offsets& at, std::int64_t length) { tile.add(at, length); });
  return tile.finish();
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
  for (const std::size_t id : ids) {
    const Layer& mask = targets_[id];
    const StridedWalk<1, 1> walk(mask.shape, {&mask.strides}, Order::memory);
    if (walk.is_one_run()) use_large_pages(mask.data, static_cast<std::size_t>(mask.size));
  }
  std::atomic<bool> are_finite{true};
  pool_.for_each(static_cast<std::int64_t>(chunks.size()), total_size(boxes),
                 [&](std::int64_t task, int) {
                   const Chunk& chunk = chunks[static_cast<std::size_t>(task)];
                   const Layer& layer = layers_[chunk.layer];
                   const std::uint64_t largest =
                       rank_chunk(layer, targets_[chunk.layer], boxes[chunk.position], chunk);
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
  rank_chunk(layers_[chunk.layer], targets_[chunk.layer], pending_.boxes[chunk.position], chunk);
}

}  // namespace lampfast::cpu
