// Commit in host memory: one streaming pass that zeroes the pruned weights or writes their masks,
// or that only completes the masks that a partition has written. It must not stop half way, so that
// nothing here allocates or throws.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "core/key_format.h"
#include "core/strided_walk.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/host_backend.h"
#include "cpu/kernels/kernels.h"
#include "cpu/tie_boundary.h"

namespace lampfast::cpu {
namespace {

// A run of a layer and of its target, evenly spaced in each.
struct PairedRun {
  ElementRun from;
  std::int64_t to;
  std::int64_t to_step;
  std::int64_t length;

  bool is_dense() const { return from.step == 1 && to_step == 1; }

  PairedRun part(std::int64_t begin, std::int64_t end) const {
    return {from.from(begin), to + begin * to_step, to_step, end - begin};
  }
};

// Whether a commit has to know row-major indices: which ties are pruned depends on them, and the
// scale that an element has.
bool needs_indices(const Layer& source, const LayerThreshold& threshold) {
  return threshold.ties > 0 || source.scales;
}

// Calls body(run, bound) for runs that make up the chunk, in each of which exactly the elements
// with keys below `bound` are pruned. `indices` are row-major strides, where they are needed.
template <class Body>
void for_each_run(const Layer& source, const Layer& target, const LayerThreshold& threshold,
                  std::int64_t first_kept, const Strides& indices, const Chunk& chunk,
                  Body&& body) noexcept {
  if (!needs_indices(source, threshold)) {
    const StridedWalk<2, 0> walk(source.shape, {&source.strides, &target.strides}, Order::memory);
    const auto& step = walk.step();
    walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
      body(PairedRun{{at[0], step[0]}, at[1], step[1], length}, threshold.key);
    });
    return;
  }
  // Row-major indices rise along a run, so the ties that are pruned are at its beginning: the run
  // is split behind them.
  const StridedWalk<3, 0> walk(source.shape, {&source.strides, &target.strides, &indices},
                               Order::memory);
  const auto& step = walk.step();
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    const std::int64_t split =
        std::clamp<std::int64_t>((first_kept - at[2] + step[2] - 1) / step[2], 0, length);
    const PairedRun run{{at[0], step[0], at[2], step[2]}, at[1], step[1], length};
    if (split > 0) body(run.part(0, split), threshold.key + 1);
    if (split < length) body(run.part(split, length), threshold.key);
  });
}

// Writes the mask of a run of a layer that compares codes (chunks.h).
void mask_codes(const Layer& source, std::uint8_t* target, const PairedRun& run,
                std::uint64_t bound) {
  const Kernels& kernels = kernels_for(source.scales->codes);
  for_each_scale(
      source, run.from, run.length,
      [&](std::int64_t first, const std::uint8_t* codes, std::int64_t length, double scale) {
        const std::uint64_t least = least_code(source.scales->codes, scale, bound);
        kernels.mask(codes, length, least, target + run.to + first);
      });
}

// Zeroes the codes of a run of such a layer.
void zero_codes(const Layer& source, std::uint8_t* codes, const PairedRun& run,
                std::uint64_t bound) {
  const Kernels& kernels = kernels_for(source.scales->codes);
  for_each_scale(source, run.from, run.length,
                 [&](std::int64_t first, const std::uint8_t*, std::int64_t length, double scale) {
                   const std::uint64_t least = least_code(source.scales->codes, scale, bound);
                   kernels.zero(codes + run.to + first, length, least);
                 });
}

constexpr std::int64_t piece = test_sizes ? 8 : 1024;

// Zeroes the weights whose importances have a key below the bound. Weights may be their own
// importances.
template <class Format, class Element>
void zero_run(const Layer& importance, Element* weights, const PairedRun& run,
              std::uint64_t bound) {
  using Key = typename Format::Storage;
  const auto least_kept = static_cast<Key>(bound);
  std::array<Key, piece> buffer;
  for (std::int64_t begin = 0; begin < run.length; begin += piece) {
    const PairedRun part = run.part(begin, std::min(begin + piece, run.length));
    const Key* keys = load(importance, part.from, part.length, buffer.data());
    for (std::int64_t i = 0; i < part.length; ++i) {
      Element& weight = weights[part.to + i * part.to_step];
      weight = Format::key(keys[i]) < least_kept ? Element{0} : weight;
    }
  }
}

// Writes the mask of a run, by way of dense copies of what is not dense.
template <class Key>
void mask_run(const Kernels& kernels, const Layer& source, std::uint8_t* target,
              const PairedRun& run, std::uint64_t bound) {
  std::array<Key, piece> buffer;
  std::array<std::uint8_t, piece> kept;
  for (std::int64_t begin = 0; begin < run.length; begin += piece) {
    const PairedRun part = run.part(begin, std::min(begin + piece, run.length));
    const Key* keys = load(source, part.from, part.length, buffer.data());
    kernels.mask(keys, part.length, bound, kept.data());
    for (std::int64_t i = 0; i < part.length; ++i) {
      target[part.to + i * part.to_step] = kept[static_cast<std::size_t>(i)];
    }
  }
}

void mask_chunk(const Layer& source, const Layer& target, const LayerThreshold& threshold,
                std::int64_t first_kept, const Strides& indices, const Chunk& chunk) noexcept {
  const Kernels& kernels = kernels_for(source.dtype);
  auto* kept = reinterpret_cast<std::uint8_t*>(target.data);
  const bool by_codes = compares_codes(source, indices);
  with_format(source.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    const auto* data = reinterpret_cast<const Key*>(source.data);
    for_each_run(source, target, threshold, first_kept, indices, chunk,
                 [&](const PairedRun& run, std::uint64_t bound) {
                   if (by_codes && run.to_step == 1) {
                     mask_codes(source, kept, run, bound);
                   } else if (run.is_dense() && !source.scales) {
                     kernels.mask(data + run.from.offset, run.length, bound, kept + run.to);
                   } else {
                     mask_run<Key>(kernels, source, kept, run, bound);
                   }
                 });
  });
}

// The stored candidates of one chunk, as a kernel reads them: in pieces, each of them contiguous
// and with classify_slack keys of memory behind it.
class CandidateReader {
 public:
  using Segments = std::vector<CandidateSegment>;

  CandidateReader(const Segments& candidates, const Chunk& chunk, std::int64_t width) noexcept
      : width_(static_cast<std::size_t>(width)) {
    const CandidateSegment wanted{nullptr, nullptr, 0, chunk.begin};
    std::tie(segment_, end_) =
        std::equal_range(candidates.begin(), candidates.end(), wanted,
                         [](const CandidateSegment& a, const CandidateSegment& b) {
                           return a.chunk_begin < b.chunk_begin;
                         });
  }

  // The next keys: as many as can be held, or all that are left.
  const std::byte* peek() noexcept {
    std::memmove(keys_.data(), keys_.data() + first_ * width_, held_ * width_);
    first_ = 0;
    fill();
    return keys_.data();
  }

  std::int64_t held() const noexcept { return static_cast<std::int64_t>(held_); }
  bool holds_all() const noexcept { return segment_ == end_; }

  void skip(std::int64_t count) noexcept {
    first_ += static_cast<std::size_t>(count);
    held_ -= static_cast<std::size_t>(count);
  }

 private:
  static constexpr std::size_t capacity = 2 * classify_block;

  void fill() noexcept {
    while (segment_ != end_ && held_ < capacity) {
      const auto available = static_cast<std::size_t>(segment_->count) - taken_;
      const std::size_t count = std::min(available, capacity - held_);
      std::memcpy(keys_.data() + held_ * width_, segment_->keys + taken_ * width_, count * width_);
      held_ += count;
      taken_ += count;
      if (count < available) return;
      ++segment_;
      taken_ = 0;
    }
  }

  std::size_t width_;
  Segments::const_iterator segment_;
  Segments::const_iterator end_;
  std::size_t taken_ = 0;  // of the segment
  std::size_t first_ = 0;  // of the keys that are held
  std::size_t held_ = 0;
  std::array<std::byte, (capacity + classify_slack) * sizeof(std::uint64_t)> keys_;
};

// Completes a chunk of a mask that a partition has written: the candidates are the keys of its
// undecided elements.
void settle_chunk(const Layer& source, std::uint8_t* kept,
                  const std::vector<CandidateSegment>& candidates, const LayerThreshold& threshold,
                  std::int64_t first_kept, const Chunk& chunk) noexcept {
  const Kernels& kernels = kernels_for(source.dtype);
  CandidateReader reader(candidates, chunk, item_size(source.dtype));
  const auto settle = [&](std::int64_t begin, std::int64_t end, std::uint64_t bound) {
    while (begin < end) {
      const std::byte* keys = reader.peek();
      // At most every element is undecided.
      const std::int64_t length =
          reader.holds_all() ? end - begin : std::min(reader.held(), end - begin);
      reader.skip(kernels.settle(kept + begin, length, keys, reader.held(), bound));
      begin += length;
    }
  };
  // If the threshold has ties, positions are row-major indices (see HostBackend::prepare), and ties
  // before the first kept one are pruned.
  const std::int64_t ties_end = std::clamp(first_kept, chunk.begin, chunk.end);
  settle(chunk.begin, ties_end, threshold.key + 1);
  settle(ties_end, chunk.end, threshold.key);
}

void zero_chunk(const Layer& source, const Layer& target, const LayerThreshold& threshold,
                std::int64_t first_kept, const Strides& indices, const Chunk& chunk) noexcept {
  if (threshold.pruned == 0) return;
  const Kernels& kernels = kernels_for(target.dtype);
  with_format(target.dtype, [&](auto target_format) {
    auto* weights = reinterpret_cast<typename decltype(target_format)::Storage*>(target.data);
    with_format(source.dtype, [&](auto format) {
      using Format = decltype(format);
      const bool is_own = source.data == target.data;
      const bool by_codes = is_own && compares_codes(source, indices);
      for_each_run(source, target, threshold, first_kept, indices, chunk,
                   [&](const PairedRun& run, std::uint64_t bound) {
                     if (by_codes && run.is_dense()) {
                       zero_codes(source, reinterpret_cast<std::uint8_t*>(target.data), run, bound);
                     } else if (is_own && run.is_dense() && !source.scales) {
                       kernels.zero(weights + run.to, run.length, bound);
                     } else {
                       zero_run<Format>(source, weights, run, bound);
                     }
                   });
    });
  });
}

}  // namespace

// The last read of a layer, if it stored all candidates and its interval decides all other
// elements; else null. If the threshold has ties, all elements equal to its key are then
// candidates.
const HostBackend::Read* HostBackend::useful_read(std::size_t id,
                                                  const LayerThreshold& threshold) const {
  const Read& read = reads_[id];
  const bool is_useful =
      read.stored.is_complete && read.stored.decides(threshold, layers_[id].size);
  return is_useful ? &read : nullptr;
}

void HostBackend::prepare(const LayerIds& ids, const std::vector<LayerThreshold>& thresholds,
                          const MaskSink& masks) {
  const std::vector<Chunk> wholes = whole(layers_, ids);
  pending_ = {cut(wholes),
              total_size(wholes),
              &thresholds,
              masks,
              std::vector<PendingLayer>(layers_.size()),
              {}};
  for (const std::size_t id : ids) {
    const Layer& layer = layers_[id];
    const Read* read = useful_read(id, thresholds[id]);
    PendingLayer& pending = pending_.layers[id];
    const auto* candidates = read == nullptr ? nullptr : &read->candidates;
    pending.first_kept = first_kept_tie(layer, thresholds[id], candidates, pool_);
    const bool has_ties = thresholds[id].ties > 0;
    if (needs_indices(layer, thresholds[id])) pending.indices = row_major_strides(layer.shape);
    // Unless positions are row-major indices, they do not tell which ties are pruned.
    const bool positions_tell = !has_ties || positions_are_indices(layer.shape, layer.strides);
    const bool is_mask_written = read != nullptr && read->stored.is_mask_written;
    pending.to_settle = is_mask_written && positions_tell ? candidates : nullptr;
  }
  pool_.start_helpers(static_cast<std::int64_t>(pending_.chunks.size()), pending_.size);
}

std::optional<CommitFailure> HostBackend::commit() noexcept {
  const auto body = [this](std::int64_t task, int) noexcept {
    commit(pending_.chunks[static_cast<std::size_t>(task)]);
  };
  static_assert(std::is_nothrow_invocable_v<decltype(body), std::int64_t, int>);
  pool_.for_each(static_cast<std::int64_t>(pending_.chunks.size()), pending_.size, body);
  return std::nullopt;
}

void HostBackend::commit(const Chunk& chunk) noexcept {
  if (!pending_.boxes.empty()) return commit_groups(chunk);
  const std::size_t id = chunk.layer;
  const Layer& source = layers_[id];
  const LayerThreshold& threshold = (*pending_.thresholds)[id];
  const auto& [first_kept, to_settle, indices] = pending_.layers[id];
  if (!pending_.masks.wants_masks()) {
    zero_chunk(source, targets_[id], threshold, first_kept, indices, chunk);
  } else if (to_settle != nullptr) {
    settle_chunk(source, pending_.masks.bytes(id), *to_settle, threshold, first_kept, chunk);
  } else {
    mask_chunk(source, pending_.masks.mask(id), threshold, first_kept, indices, chunk);
  }
}

}  // namespace lampfast::cpu
