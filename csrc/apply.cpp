#include "apply.h"

#include <algorithm>
#include <array>
#include <vector>

#include "chunks.h"
#include "cpu/kernels.h"
#include "magnitude.h"
#include "tie_boundary.h"
#include "tiny.h"
#include "walk.h"

namespace lampfast {
namespace {

// A stretch of a layer and of its target, evenly spaced in each.
struct Run {
  std::int64_t from;
  std::int64_t from_step;
  std::int64_t to;
  std::int64_t to_step;
  std::int64_t length;

  bool is_dense() const { return from_step == 1 && to_step == 1; }

  Run part(std::int64_t begin, std::int64_t end) const {
    return {from + begin * from_step, from_step, to + begin * to_step, to_step, end - begin};
  }
};

// Calls body(run, threshold) for runs that make up the chunk: their elements with a key below the
// threshold are pruned.
template <class Body>
void for_each_run(const Layer& source, const Layer& target, const Cut& cut, std::int64_t first_kept,
                  const Chunk& chunk, Body&& body) {
  if (cut.ties == 0) {
    const Walk<2, 0> walk(source.shape, {&source.strides, &target.strides}, Order::memory);
    const auto& step = walk.step();
    walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
      body(Run{at[0], step[0], at[1], step[1], length}, cut.key);
    });
    return;
  }
  // Indices rise along a run, so that the ties that go are at its beginning.
  const Strides indices = row_major_strides(source.shape);
  const Walk<3, 0> walk(source.shape, {&source.strides, &target.strides, &indices}, Order::memory);
  const auto& step = walk.step();
  walk.runs(chunk.begin, chunk.end, [&](auto, const auto& at, std::int64_t length) {
    const std::int64_t ties_go =
        std::clamp<std::int64_t>((first_kept - at[2] + step[2] - 1) / step[2], 0, length);
    const Run run{at[0], step[0], at[1], step[1], length};
    if (ties_go > 0) body(run.part(0, ties_go), cut.key + 1);
    if (ties_go < length) body(run.part(ties_go, length), cut.key);
  });
}

// Zeroes weights by the magnitudes of their importances, which they may be themselves.
template <class Format, class Element>
void zero_run(const typename Format::Storage* importance, Element* weights, const Run& run,
              std::uint64_t threshold) {
  const auto bound = static_cast<typename Format::Storage>(threshold);
  for (std::int64_t i = 0; i < run.length; ++i) {
    Element& weight = weights[run.to + i * run.to_step];
    weight = Format::key(importance[run.from + i * run.from_step]) < bound ? Element{0} : weight;
  }
}

// Masks any run, by way of dense copies.
template <class Key>
void mask_run(const cpu::Kernels& kernels, const Key* source, std::uint8_t* target, const Run& run,
              std::uint64_t threshold) {
  constexpr std::int64_t piece = tiny ? 8 : 1024;
  std::array<Key, piece> keys;
  std::array<std::uint8_t, piece> kept;
  for (std::int64_t begin = 0; begin < run.length; begin += piece) {
    const Run part = run.part(begin, std::min(begin + piece, run.length));
    for (std::int64_t i = 0; i < part.length; ++i) {
      keys[static_cast<std::size_t>(i)] = source[part.from + i * part.from_step];
    }
    kernels.mask(keys.data(), part.length, threshold, kept.data());
    for (std::int64_t i = 0; i < part.length; ++i) {
      target[part.to + i * part.to_step] = kept[static_cast<std::size_t>(i)];
    }
  }
}

void mask_chunk(const Layer& source, const Layer& target, const Cut& cut, std::int64_t first_kept,
                const Chunk& chunk) {
  const cpu::Kernels& kernels = cpu::kernels(source.dtype);
  auto* kept = reinterpret_cast<std::uint8_t*>(target.data);
  with_format(source.dtype, [&](auto format) {
    const auto* data = reinterpret_cast<const typename decltype(format)::Storage*>(source.data);
    for_each_run(source, target, cut, first_kept, chunk,
                 [&](const Run& run, std::uint64_t threshold) {
                   if (run.is_dense()) {
                     kernels.mask(data + run.from, run.length, threshold, kept + run.to);
                   } else {
                     mask_run(kernels, data, kept, run, threshold);
                   }
                 });
  });
}

// Completes a chunk of a mask that the survey has written.
void settle_chunk(const Layer& source, const Layer& target, const Survey& survey, const Cut& cut,
                  std::int64_t first_kept, const Chunk& chunk) {
  const auto segments = std::equal_range(
      survey.candidates.begin(), survey.candidates.end(), Segment{nullptr, nullptr, 0, chunk.begin},
      [](const Segment& a, const Segment& b) { return a.chunk_begin < b.chunk_begin; });
  const std::int64_t width = item_size(source.dtype);
  std::vector<std::byte> candidates;
  for (auto segment = segments.first; segment != segments.second; ++segment) {
    candidates.insert(candidates.end(), segment->keys, segment->keys + segment->count * width);
  }
  candidates.resize(candidates.size() + static_cast<std::size_t>(cpu::classify_slack * width));
  const cpu::Kernels& kernels = cpu::kernels(source.dtype);
  auto* kept = reinterpret_cast<std::uint8_t*>(target.data);
  // Positions are row-major indices where there are ties: those before the first kept one go.
  const std::int64_t ties_end = std::clamp(first_kept, chunk.begin, chunk.end);
  const std::int64_t settled =
      kernels.settle(kept + chunk.begin, ties_end - chunk.begin, candidates.data(), cut.key + 1);
  kernels.settle(kept + ties_end, chunk.end - ties_end, candidates.data() + settled * width,
                 cut.key);
}

// The survey of a layer, if the cut can make use of it.
const Survey* useful(const std::vector<Survey>& surveys, std::size_t i, const Layer& layer,
                     const Cut& cut) {
  if (surveys.empty() || !surveys[i].stored || !surveys[i].holds(cut, layer.size)) return nullptr;
  return &surveys[i];
}

// Calls visit(chunk, index of the first kept tie) for chunks of the chosen layers.
template <class Visit>
void for_each_cut(const std::vector<Layer>& sources, const Chosen& chosen,
                  const std::vector<Cut>& cuts, const std::vector<Survey>& surveys, cpu::Team& team,
                  Visit&& visit) {
  std::vector<std::int64_t> first_kept(sources.size());
  for (const std::size_t i : chosen) {
    const Survey* survey = useful(surveys, i, sources[i], cuts[i]);
    first_kept[i] = first_kept_tie(sources[i], cuts[i], survey, team);
  }
  for_each_chunk(whole(sources, chosen), team,
                 [&](const Chunk& chunk, int) { visit(chunk, first_kept[chunk.layer]); });
}

}  // namespace

void zero(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const Chosen& chosen, const std::vector<Cut>& cuts, const std::vector<Survey>& surveys,
          cpu::Team& team) {
  const auto zero_chunk = [&](const Chunk& chunk, std::int64_t first_kept) {
    const Layer& source = sources[chunk.layer];
    const Layer& target = targets[chunk.layer];
    const Cut& cut = cuts[chunk.layer];
    if (cut.pruned == 0) return;
    const cpu::Kernels& kernels = cpu::kernels(target.dtype);
    with_format(target.dtype, [&](auto target_format) {
      auto* weights = reinterpret_cast<typename decltype(target_format)::Storage*>(target.data);
      with_format(source.dtype, [&](auto format) {
        using Format = decltype(format);
        const auto* importance = reinterpret_cast<const typename Format::Storage*>(source.data);
        for_each_run(source, target, cut, first_kept, chunk,
                     [&](const Run& run, std::uint64_t threshold) {
                       if (source.data == target.data && run.is_dense()) {
                         kernels.zero(weights + run.to, run.length, threshold);
                       } else {
                         zero_run<Format>(importance, weights, run, threshold);
                       }
                     });
      });
    });
  };
  for_each_cut(sources, chosen, cuts, surveys, team, zero_chunk);
}

void mask(const std::vector<Layer>& sources, const std::vector<Layer>& targets,
          const Chosen& chosen, const std::vector<Cut>& cuts, const std::vector<Survey>& surveys,
          cpu::Team& team) {
  const auto complete_chunk = [&](const Chunk& chunk, std::int64_t first_kept) {
    const Layer& source = sources[chunk.layer];
    const Layer& target = targets[chunk.layer];
    const Cut& cut = cuts[chunk.layer];
    const Survey* survey = useful(surveys, chunk.layer, source, cut);
    // Where elements do not lie in row-major order their positions do not tell which ties go.
    const bool positions_tell = cut.ties == 0 || is_row_major(source.shape, source.strides);
    if (survey != nullptr && survey->fused && positions_tell) {
      settle_chunk(source, target, *survey, cut, first_kept, chunk);
    } else {
      mask_chunk(source, target, cut, first_kept, chunk);
    }
  };
  for_each_cut(sources, chosen, cuts, surveys, team, complete_chunk);
}

}  // namespace lampfast
