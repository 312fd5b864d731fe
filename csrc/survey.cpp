#include "survey.h"

#include <algorithm>
#include <cmath>
#include <mutex>

#include "chunks.h"
#include "cpu/classify.h"
#include "cpu/parallel.h"
#include "magnitude.h"
#include "walk.h"

namespace lampfast {
namespace {

// Slots, and the steps that they become (profile.h), take memory for every layer at once: about 2%
// of the weights' bytes at most, and a little for the smallest layers.
constexpr std::int64_t bytes_per_slot = 1 << 12;
constexpr std::int64_t least_slots = 4;
constexpr std::int64_t most_slots = 512;
// Once the cut is bounded only a few steps near it are kept (profile.h).
constexpr std::int64_t least_slots_of_candidates = 64;

// As many slots as wanted or somewhat fewer, each a power of two of keys wide.
void lay_out_slots(std::int64_t wanted, Survey& survey) {
  const std::uint64_t keys = survey.bracket.high - survey.bracket.low;
  survey.slot_bits = 0;
  while ((keys >> survey.slot_bits) >= static_cast<std::uint64_t>(wanted)) ++survey.slot_bits;
  survey.slots.assign(static_cast<std::size_t>((keys >> survey.slot_bits) + 1), Slot{});
}

std::int64_t slot_count(const Layer& layer, std::int64_t least) {
  return std::clamp(layer.size * item_size(layer.dtype) / bytes_per_slot, least, most_slots);
}

// What one task found; merged into the layer's survey under a lock.
struct Tally {
  std::int64_t below = 0;
  std::int64_t above = 0;
  Sum above_sum;
  std::vector<Slot> slots;
  std::vector<Segment> candidates;
  bool stored = true;

  void merge_into(Survey& survey) const {
    survey.below += below;
    survey.above += above;
    survey.above_sum.add(above_sum);
    for (std::size_t i = 0; i < slots.size(); ++i) {
      survey.slots[i].count += slots[i].count;
      survey.slots[i].sum += slots[i].sum;
    }
    survey.stored = survey.stored && stored;
    survey.candidates.insert(survey.candidates.end(), candidates.begin(), candidates.end());
  }
};

static_assert(cpu::classify_block <= Sum::leaf_terms);

// Adds keys to a tally of the survey's bracket, and calls sink(keys, count) with those inside it,
// when the data may be overwritten.
template <class Format, class Sink>
void read(Dtype dtype, const Survey& survey, const typename Format::Storage* data,
          std::int64_t length, Tally& tally, Sink&& sink) {
  using Key = typename Format::Storage;
  const auto low = static_cast<Key>(survey.bracket.low);
  cpu::classify(dtype, data, length, survey.bracket, survey.scale,
                [&](const cpu::Classified& block, const Key* inside) {
                  tally.below += block.below;
                  tally.above += block.above;
                  tally.above_sum.add(block.above_sum);
                  for (int i = 0; i < block.inside; ++i) {
                    const auto slot_index = (inside[i] - low) >> survey.slot_bits;
                    Slot& slot = tally.slots[static_cast<std::size_t>(slot_index)];
                    ++slot.count;
                    slot.sum += scaled_square<Format>(inside[i], survey.scale);
                  }
                  if (block.inside > 0) sink(inside, block.inside);
                });
}

}  // namespace

std::vector<double> scales(const std::vector<Layer>& layers, int threads) {
  std::vector<std::size_t> wide;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].dtype == Dtype::float64) wide.push_back(i);
  }
  std::vector<std::uint64_t> largest(layers.size(), 0);
  std::mutex mutex;
  for_each_chunk(whole(layers, wide), threads, [&](const Chunk& chunk, int) {
    const Layer& layer = layers[chunk.layer];
    const auto* data = reinterpret_cast<const std::uint64_t*>(layer.data);
    std::uint64_t most = 0;
    Walk<1>(layer.shape, {&layer.strides}, Order::memory)
        .runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
          for (std::int64_t i = 0; i < length; ++i) {
            most = std::max(most, Float64::key(data[offsets[0] + i]));
          }
        });
    const std::lock_guard<std::mutex> lock(mutex);
    largest[chunk.layer] = std::max(largest[chunk.layer], most);
  });
  std::vector<double> result(layers.size(), 1.0);
  for (const std::size_t i : wide) {
    if (largest[i] >= Float64::not_finite) throw NotFinite();
    if (largest[i] == 0) continue;
    // Within +-1000 the scale and its inverse are normal numbers; the squares stay far from
    // overflow, and what underflows is below 2^-700 of the layer's sum.
    result[i] = std::ldexp(1.0, -std::clamp(std::ilogb(Float64::value(largest[i])), -1000, 1000));
  }
  return result;
}

void survey_weights(const std::vector<Layer>& layers, const std::vector<std::size_t>& chosen,
                    std::vector<Survey>& surveys, CandidateStore& store, int threads) {
  for (const std::size_t i : chosen) {
    Survey fresh;
    fresh.bracket = surveys[i].bracket;
    fresh.scale = surveys[i].scale;
    fresh.stored = true;
    lay_out_slots(slot_count(layers[i], least_slots), fresh);
    surveys[i] = std::move(fresh);
  }
  std::vector<CandidateWriter> writers(static_cast<std::size_t>(std::max(threads, 1)),
                                       CandidateWriter(store));
  std::mutex mutex;
  for_each_chunk(whole(layers, chosen), threads, [&](const Chunk& chunk, int worker) {
    const Layer& layer = layers[chunk.layer];
    Survey& survey = surveys[chunk.layer];
    Tally tally;
    tally.slots.resize(survey.slots.size());
    // Where every slot is a single key the counts are already the whole truth.
    tally.stored = survey.slot_bits > 0;
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      using Key = typename Format::Storage;
      const auto* data = reinterpret_cast<const Key*>(layer.data);
      CandidateWriter& writer = writers[static_cast<std::size_t>(worker)];
      const auto keep = [&](const Key* keys, std::int64_t count) {
        tally.stored = tally.stored && writer.append(keys, count, tally.candidates);
      };
      for_each_stretch(layer, data, chunk, [&](const Key* keys, std::int64_t length) {
        read<Format>(layer.dtype, survey, keys, length, tally, keep);
      });
    });
    const std::lock_guard<std::mutex> lock(mutex);
    tally.merge_into(survey);
  });
  for (const std::size_t i : chosen) {
    if (!std::isfinite(surveys[i].above_sum.value())) throw NotFinite();
    if (!surveys[i].stored) surveys[i].candidates.clear();
  }
}

void survey_candidates(const std::vector<Layer>& layers, const std::vector<std::size_t>& chosen,
                       const std::vector<Bracket>& brackets, std::vector<Survey>& surveys,
                       int threads) {
  for (const std::size_t i : chosen) {
    surveys[i].bracket = brackets[i];
    lay_out_slots(slot_count(layers[i], least_slots_of_candidates), surveys[i]);
  }
  struct Task {
    std::size_t layer;
    Segment* segment;
  };
  std::vector<Task> tasks;
  for (const std::size_t i : chosen) {
    for (Segment& segment : surveys[i].candidates) tasks.push_back({i, &segment});
  }
  std::mutex mutex;
  cpu::parallel_for(threads, static_cast<std::int64_t>(tasks.size()), [&](std::int64_t t, int) {
    const Task task = tasks[static_cast<std::size_t>(t)];
    Survey& survey = surveys[task.layer];
    Tally tally;
    tally.slots.resize(survey.slots.size());
    with_format(layers[task.layer].dtype, [&](auto format) {
      using Format = decltype(format);
      using Key = typename Format::Storage;
      auto* keys = reinterpret_cast<Key*>(task.segment->keys);
      std::int64_t kept = 0;
      read<Format>(layers[task.layer].dtype, survey, keys, task.segment->count, tally,
                   [&](const Key* inside, std::int64_t count) {
                     std::copy_n(inside, count, keys + kept);
                     kept += count;
                   });
      task.segment->count = kept;
    });
    const std::lock_guard<std::mutex> lock(mutex);
    tally.merge_into(survey);
  });
}

}  // namespace lampfast
