// n:m patterns in host memory: of each group, the elements that are largest stay. A mask is written
// while the layer is read for the first and only time; zeroes are written by the commit, which
// allocates nothing and cannot fail.
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <utility>
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

bool is_in_place(const Layer& layer, const Layer& target) noexcept {
  return layer.data == target.data && layer.dtype == target.dtype &&
         layer.strides == target.strides;
}

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

// Groups that are ranked together. Those that make up contiguous lines are copied as lines, others
// as rows.
class Tile {
 public:
  Tile(const Layer& layer, const Layer& target, const GroupBox& box, const GroupWalk& walk) noexcept
      : box_(box),
        step_(walk.step()),
        source_(layer, box.source.begin),
        target_(target, box.target.begin),
        item_(std::max(source_.item, target_.item)),
        is_mask_(target.dtype == Dtype::boolean),
        is_in_place_(is_in_place(layer, target)),
        row_lanes_(row_lanes(box.size, item_)) {
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

  // Ranks the groups that are left. Returns the largest key of all, if a mask is written.
  std::uint64_t finish() noexcept {
    rank();
    return largest_;
  }

 private:
  static constexpr int least_columns = 16;
  static constexpr int most_columns = 9 * GroupPattern::most_size;  // kernels of 3 by 3
  static constexpr int most_lines = 4 * group_lines;
  static constexpr int most_row_lanes = 4 * group_lines;
  static constexpr int short_row_bytes = 64;
  static constexpr int few_bytes = 1 << 13;
  static constexpr int most_bytes = 3 << 15;

  struct Run {
    int first;  // of its lanes
    int count;
    std::int64_t target;
  };

  // Rows often lie a power of two apart, so that few of their bytes fit the first cache together.
  static int row_lanes(int size, std::int64_t item) noexcept {
    const std::int64_t lanes = (1 << 11) / (size * item) / group_lines * group_lines;
    return static_cast<int>(
        std::clamp<std::int64_t>(lanes, group_lines, std::max<std::int64_t>(256 / item, 64)));
  }

  // A line has so many groups, one behind the other.
  void join(int groups) noexcept {
    const bool is_dense = step_ == Offsets{box_.size, box_.size};
    if (groups > 1 && !is_dense) return;
    set_lines(groups);
    for (int c = 0; c < columns_; ++c) {
      places_[c] = (c % box_.size * groups + c / box_.size) * lines_;
    }
  }

  // A line has the elements of so many groups in turns, as the input channels of a convolution has
  // those of each kernel. Longer rows are copied as such.
  void interleave(std::int64_t groups) noexcept {
    const std::int64_t columns = groups * box_.size;
    const std::int64_t bytes = columns * group_lines * item_;
    if (columns < least_columns || columns > most_columns || bytes > most_bytes) return;
    if (groups * item_ > short_row_bytes) return;
    set_lines(static_cast<int>(groups));
    for (int c = 0; c < columns_; ++c) places_[c] = c * lines_;
  }

  void set_lines(int groups) noexcept {
    per_line_ = groups;
    columns_ = groups * box_.size;
    const std::int64_t lines = few_bytes / (columns_ * item_) / group_lines * group_lines;
    lines_ = static_cast<int>(std::clamp<std::int64_t>(lines, group_lines, most_lines));
  }

  Offsets moved(Offsets at, std::int64_t groups) const noexcept {
    for (std::size_t t = 0; t < at.size(); ++t) at[t] += groups * step_[t];
    return at;
  }

  void add_lines(Offsets at, std::int64_t count) noexcept {
    const std::int64_t source_step = per_line_ * step_[0] * source_.item;
    const std::int64_t target_step = per_line_ * step_[1] * target_.item;
    while (count > 0) {
      const auto taken = static_cast<int>(std::min<std::int64_t>(count, lines_ - used_));
      const std::byte* const source = source_.at(at[0]);
      std::byte* const target = target_.at(at[1]);
      for (int l = 0; l < taken; ++l) {
        source_lines_[used_ + l] = source + l * source_step;
        target_lines_[used_ + l] = target + l * target_step;
      }
      at = moved(at, taken * per_line_);
      count -= taken;
      used_ += taken;
      if (used_ == lines_) rank();
    }
  }

  void add_rows(Offsets at, std::int64_t count) noexcept {
    while (count > 0) {
      const auto taken = static_cast<int>(std::min<std::int64_t>(count, row_lanes_ - used_));
      source_.kernels.load_rows(source_.at(at[0]), {box_.size, box_.source.step, taken, step_[0]},
                                elements_ + used_ * source_.item, row_lanes_);
      runs_[run_count_++] = {used_, taken, at[1]};
      at = moved(at, taken);
      count -= taken;
      used_ += taken;
      if (used_ == row_lanes_) rank();
    }
  }

  void rank() noexcept {
    if (used_ > 0) has_lines_ ? rank_lines() : rank_rows();
    used_ = run_count_ = 0;
  }

  void rank_lines() noexcept {
    const int count = rounded(used_);
    std::fill(source_lines_ + used_, source_lines_ + count, source_lines_[0]);
    std::fill(target_lines_ + used_, target_lines_ + count, target_lines_[0]);
    source_.kernels.load_lines(source_lines_, count, columns_, places_, elements_);
    // The groups of a line are lines_ lanes apart.
    const int lanes = per_line_ * lines_;
    for (int g = 0; g < lanes; g += count == lines_ ? lanes : lines_) {
      rank_lanes(g, lanes, count == lines_ ? lanes : count);
    }
    if (!is_mask_ && !is_in_place_) {
      target_.kernels.load_lines(target_lines_, count, columns_, places_, elements_);
      target_.kernels.keep(elements_, kept_, lanes * box_.size);
    }
    target_.kernels.store_lines(result(), count, columns_, places_, target_lines_);
  }

  void rank_rows() noexcept {
    const int count = rounded(used_);
    for (int i = 0; i < box_.size; ++i) {
      std::byte* const row = elements_ + i * row_lanes_ * source_.item;
      std::fill(row + used_ * source_.item, row + count * source_.item, std::byte{0});
    }
    rank_lanes(0, row_lanes_, count);
    if (!is_mask_ && !is_in_place_) {
      for_each_run([&](std::byte* target, const GroupRows& rows, std::int64_t at) {
        target_.kernels.load_rows(target, rows, elements_ + at, row_lanes_);
      });
      target_.kernels.keep(elements_, kept_, row_lanes_ * box_.size);
    }
    for_each_run([&](std::byte* target, const GroupRows& rows, std::int64_t at) {
      target_.kernels.store_rows(result() + at, row_lanes_, target, rows);
    });
  }

  static int rounded(int lines) noexcept {
    return (lines + group_lines - 1) / group_lines * group_lines;
  }

  void rank_lanes(int first, int lanes, int count) noexcept {
    std::byte* const tile = elements_ + first * source_.item;
    const int pruned = box_.size - box_.kept;
    if (is_in_place_) {
      source_.kernels.prune_groups(tile, lanes, count, box_.size, pruned);
    } else {
      const std::uint64_t largest =
          source_.kernels.rank_groups(tile, lanes, count, box_.size, pruned, kept_ + first);
      largest_ = std::max(largest_, largest);
    }
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
  const std::int64_t item_;
  const bool is_mask_;
  const bool is_in_place_;
  const int row_lanes_;
  int per_line_ = 0;  // groups; 0 if they cannot be copied as lines
  int columns_ = 0;
  int lines_ = 0;  // in a full tile
  bool has_lines_ = false;
  int used_ = 0;  // lines or lanes
  int run_count_ = 0;
  std::uint64_t largest_ = 0;
  int places_[most_columns];
  const void* source_lines_[most_lines];
  void* target_lines_[most_lines];
  Run runs_[most_row_lanes];
  alignas(64) std::byte elements_[most_bytes];
  alignas(64) std::uint8_t kept_[most_columns * group_lines];
};

// Whether the groups lie one behind the other, in the layer and in its target.
bool is_dense(const GroupBox& box, const GroupWalk& walk) noexcept {
  return box.source.step == 1 && box.target.step == 1 && walk.is_one_run() &&
         (box.count == 1 || walk.step() == Offsets{box.size, box.size});
}

// Ranks groups that lie side by side: whole blocks of them, or parts where the chunk ends. Not
// inlined, so that the tile's functions are: these are called for a few groups at a time.
[[gnu::noinline]] std::uint64_t rank_adjacent(const Layer& layer, const Layer& target,
                                              const GroupBox& box, const GroupWalk& walk,
                                              const Chunk& chunk) noexcept {
  const Kernels& kernels = kernels_for(layer.dtype);
  const int pruned = box.size - box.kept;
  std::uint64_t largest = 0;
  for (std::int64_t begin = chunk.begin; begin < chunk.end;) {
    const std::int64_t block = begin / box.lanes;
    const std::int64_t lane = begin % box.lanes;
    const std::int64_t lanes = std::min(box.lanes - lane, chunk.end - begin);
    const std::int64_t blocks = lanes == box.lanes ? (chunk.end - begin) / lanes : 1;
    walk.runs(block, block + blocks, [&](auto, const Offsets& at, std::int64_t length) {
      const AdjacentGroups groups{box.size,
                                  pruned,
                                  length,
                                  lanes,
                                  {walk.step()[0], box.source.step},
                                  {walk.step()[1], box.target.step}};
      std::byte* const from = GroupTensor(layer, box.source.begin).at(at[0] + lane);
      std::byte* const to = GroupTensor(target, box.target.begin).at(at[1] + lane);
      if (target.dtype == Dtype::boolean) {
        largest = std::max(largest, kernels.mask_lanes(from, groups, to));
      } else {
        kernels.zero_lanes(to, groups);
      }
    });
    begin += blocks * lanes;
  }
  return largest;
}

// Ranks the chunk's groups, and writes their mask or zeroes what is pruned. Returns the largest
// key.
std::uint64_t rank_chunk(const Layer& layer, const Layer& target, const GroupBox& box,
                         const Chunk& chunk) noexcept {
  const GroupWalk walk(box.shape, {&box.source.strides, &box.target.strides}, Order::memory);
  if (box.lanes > 1) return rank_adjacent(layer, target, box, walk, chunk);
  const DenseGroups dense = kernels_for(layer.dtype).dense_groups(box.size);
  if (dense.mask != nullptr && is_dense(box, walk)) {
    const GroupTensor source(layer, box.source.begin + chunk.begin * box.size);
    const GroupTensor written(target, box.target.begin + chunk.begin * box.size);
    const std::int64_t groups = chunk.end - chunk.begin;
    const int pruned = box.size - box.kept;
    if (target.dtype == Dtype::boolean) {
      return dense.mask(source.data, groups, pruned, written.data);
    }
    if (is_in_place(layer, target)) {
      return dense.zero(written.data, groups, pruned);
    }
  }
  Tile tile(layer, target, box, walk);
  walk.runs(chunk.begin, chunk.end,
            [&](auto, const Offsets& at, std::int64_t length) { tile.add(at, length); });
  return tile.finish();
}

// Takes the axes along which groups lie side by side, in the layer and in its target, out of the
// box's shape, if there are kernels for such groups.
void find_lanes(GroupBox& box, const Layer& layer, const Layer& target) {
  if (box.size != 2 && box.size != 4 && box.size != 8) return;
  if (target.dtype != Dtype::boolean && !is_in_place(layer, target)) return;
  for (std::size_t a = 0; a < box.shape.size();) {
    const bool continues = box.shape[a] > 1 && box.source.strides[a] == box.lanes &&
                           box.target.strides[a] == box.lanes;
    if (continues) box.lanes *= std::exchange(box.shape[a], 1);
    a = continues ? 0 : a + 1;
  }
}

std::vector<GroupBox> boxes_of(const std::vector<Layer>& layers, const std::vector<Layer>& targets,
                               const LayerIds& ids, const std::vector<GroupPattern>& patterns) {
  std::vector<GroupBox> boxes;
  for (const std::size_t id : ids) {
    for (GroupBox& box : lampfast::boxes_of(id, layers[id], targets[id], patterns[id])) {
      find_lanes(box, layers[id], targets[id]);
      boxes.push_back(std::move(box));
    }
  }
  return boxes;
}

// Chunks of groups, in whole blocks of lanes where these are small; a chunk's position is that of
// its box.
std::vector<Chunk> cut(const std::vector<GroupBox>& boxes) {
  std::vector<Chunk> chunks;
  for (std::size_t b = 0; b < boxes.size(); ++b) {
    const GroupBox& box = boxes[b];
    std::int64_t groups = std::max<std::int64_t>(chunk_size / box.size, 1);
    if (groups > box.lanes) groups -= groups % box.lanes;
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
