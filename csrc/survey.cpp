#include "survey.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <mutex>

#include "chunks.h"
#include "cpu/classify.h"
#include "cpu/pages.h"
#include "magnitude.h"
#include "tiny.h"
#include "walk.h"

namespace lampfast {
namespace {

// Slots, and the steps that they become (profile.h), take memory for every layer at once: about 2%
// of the weights' bytes at most, and a little for the smallest layers.
constexpr std::int64_t bytes_per_slot = tiny ? 1 << 6 : 1 << 12;
constexpr std::int64_t least_slots = 4;
constexpr std::int64_t most_slots = tiny ? 8 : 512;
// Once the cut is bounded only a few steps near it are kept (profile.h).
constexpr std::int64_t least_slots_of_candidates = tiny ? 4 : 64;

std::int64_t slot_count(const Layer& layer, std::int64_t least) {
  return std::clamp(layer.size * item_size(layer.dtype) / bytes_per_slot, least, most_slots);
}

// What one task found; merged into the layer's survey under a lock.
class Tally {
 public:
  explicit Tally(const Survey& survey) : survey_(survey) {
    // Where every slot is a single key the sums follow from the counts; and as equal keys may come
    // in rows, each then has several counters, or an addition would wait for the one before it.
    counts_.resize(survey.slots.size() * (survey.slot_bits == 0 ? copies : 1));
    if (survey.slot_bits > 0) sums_.resize(survey.slots.size());
    if (survey.slot_bits > 0 && survey.with_ends) ends_.resize(survey.slots.size());
  }

  // Adds elements, and calls sink(keys, count) with those inside the bracket.
  template <class Format, class Sink>
  void read(Dtype dtype, const typename Format::Storage* data, std::int64_t length,
            std::uint8_t* kept, Sink&& sink) {
    using Key = typename Format::Storage;
    cpu::classify(dtype, data, length, survey_.sides.bracket, survey_.scale, kept,
                  [&](const cpu::Classified& block, const Key* inside) {
                    sides_.below += block.below;
                    sides_.above += block.above;
                    sides_.above_sum.add(block.above_sum);
                    if (block.inside == 0) return;
                    if (survey_.slot_bits == 0) {
                      count_keys(inside, block.inside);
                    } else {
                      fill_slots<Format>(inside, block.inside);
                    }
                    sink(inside, static_cast<std::int64_t>(block.inside));
                  });
  }

  void merge_into(Survey& survey) const {
    survey.sides.add(sides_);
    for (std::size_t i = 0; i < survey.slots.size(); ++i) {
      for (std::size_t c = i; c < counts_.size(); c += survey.slots.size()) {
        survey.slots[i].count += counts_[c];
      }
      if (!sums_.empty()) survey.slots[i].sum += sums_[i];
      if (!ends_.empty()) survey.slots[i].widen(ends_[i]);
    }
  }

 private:
  static constexpr std::size_t copies = 4;

  template <class Key>
  void count_keys(const Key* keys, int count) {
    const auto low = static_cast<Key>(survey_.sides.bracket.low);
    const std::size_t slots = survey_.slots.size();
    std::uint32_t* counts = counts_.data();
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      ++counts[static_cast<Key>(keys[i] - low)];
      ++counts[static_cast<Key>(keys[i + 1] - low) + slots];
      ++counts[static_cast<Key>(keys[i + 2] - low) + 2 * slots];
      ++counts[static_cast<Key>(keys[i + 3] - low) + 3 * slots];
    }
    for (; i < count; ++i) ++counts[static_cast<Key>(keys[i] - low)];
  }

  template <class Format>
  void fill_slots(const typename Format::Storage* keys, int count) {
    const auto low = static_cast<typename Format::Storage>(survey_.sides.bracket.low);
    for (int i = 0; i < count; ++i) {
      const auto slot = static_cast<std::size_t>((keys[i] - low) >> survey_.slot_bits);
      ++counts_[slot];
      sums_[slot] += scaled_square<Format>(keys[i], survey_.scale);
    }
    if (ends_.empty()) return;
    const std::uint64_t within = (std::uint64_t{1} << survey_.slot_bits) - 1;
    for (int i = 0; i < count; ++i) {
      const std::uint64_t above = keys[i] - low;
      ends_[above >> survey_.slot_bits].take(above & within);
    }
  }

  const Survey& survey_;
  Sides sides_;
  std::vector<std::uint32_t> counts_;
  std::vector<double> sums_;
  std::vector<Ends> ends_;
};

static_assert(cpu::classify_block <= Sum::leaf_terms);
static_assert(chunk_size < std::numeric_limits<std::uint32_t>::max());

}  // namespace

double scale_for(std::uint64_t largest_key) {
  if (largest_key >= Float64::not_finite) throw NotFinite();
  if (largest_key == 0) return 1.0;
  // Within +-1000 the scale and its inverse are normal numbers; the squares stay far from overflow,
  // and what underflows is below 2^-700 of the layer's sum.
  return std::ldexp(1.0, -std::clamp(std::ilogb(Float64::value(largest_key)), -1000, 1000));
}

bool alike(const Layer& layer, const Layer& target) {
  return Walk<2>(layer.shape, {&layer.strides, &target.strides}, Order::memory).is_one_run();
}

void find_scales(const std::vector<Layer>& layers, const Chosen& chosen,
                 std::vector<double>& scales, cpu::Team& team) {
  std::vector<std::uint64_t> largest(layers.size(), 0);
  std::mutex mutex;
  for_each_chunk(whole(layers, chosen), team, [&](const Chunk& chunk, int) {
    const Layer& layer = layers[chunk.layer];
    const cpu::Kernels& kernels = cpu::kernels(layer.dtype);
    std::uint64_t most = 0;
    for_each_stretch(layer, reinterpret_cast<const std::uint64_t*>(layer.data), chunk,
                     [&](const std::uint64_t* elements, std::int64_t length) {
                       most = std::max(most, kernels.largest(elements, length));
                     });
    const std::lock_guard<std::mutex> lock(mutex);
    largest[chunk.layer] = std::max(largest[chunk.layer], most);
  });
  for (const std::size_t i : chosen) scales[i] = scale_for(largest[i]);
}

void survey_weights(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                    const Chosen& chosen, std::vector<Survey>& surveys,
                    const std::shared_ptr<CandidateBudget>& budget, cpu::Team& team) {
  for (const std::size_t i : chosen) {
    Survey fresh = surveys[i].anew();
    fresh.fused = !masks.empty() && alike(layers[i], masks[i]);
    if (fresh.fused) cpu::use_large_pages(masks[i].data, static_cast<std::size_t>(masks[i].size));
    fresh.lay_out_slots(slot_count(layers[i], least_slots));
    surveys[i] = std::move(fresh);
  }
  std::vector<CandidateWriter> writers(static_cast<std::size_t>(team.size()),
                                       CandidateWriter(budget));
  std::vector<std::atomic<std::int64_t>> candidates(layers.size());
  std::vector<std::atomic<bool>> incomplete(layers.size());
  std::mutex mutex;
  for_each_chunk(whole(layers, chosen), team, [&](const Chunk& chunk, int worker) {
    const Layer& layer = layers[chunk.layer];
    Survey& survey = surveys[chunk.layer];
    std::atomic<std::int64_t>& candidates_yet = candidates[chunk.layer];
    std::uint8_t* kept = nullptr;
    if (survey.fused) {
      kept = reinterpret_cast<std::uint8_t*>(masks[chunk.layer].data) + chunk.begin;
    }
    Tally tally(survey);
    std::vector<Segment> segments;
    bool complete = !incomplete[chunk.layer] && candidates_yet <= budget->share(layer.size);
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      using Key = typename Format::Storage;
      CandidateWriter& writer = writers[static_cast<std::size_t>(worker)];
      std::int64_t inside = 0;
      const auto store_keys = [&](const Key* keys, std::int64_t count) {
        inside += count;
        complete = complete && writer.append(keys, count, chunk.begin, segments);
      };
      for_each_stretch(layer, reinterpret_cast<const Key*>(layer.data), chunk,
                       [&](const Key* elements, std::int64_t length) {
                         tally.read<Format>(layer.dtype, elements, length, kept, store_keys);
                         if (kept != nullptr) kept += length;
                       });
      candidates_yet += inside;
    });
    // A small layer is one task's alone.
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (chunk.end - chunk.begin < layer.size) lock.lock();
    tally.merge_into(survey);
    // A part of a layer's candidates is of no use; others can have its room.
    if (!complete) {
      incomplete[chunk.layer] = true;
      survey.candidates.clear();
    }
    if (incomplete[chunk.layer]) return;
    survey.candidates.insert(survey.candidates.end(), segments.begin(), segments.end());
  });
  for (const std::size_t i : chosen) {
    Survey& survey = surveys[i];
    if (!std::isfinite(survey.sides.above_sum.value())) throw NotFinite();
    survey.stored = !incomplete[i];
    std::stable_sort(
        survey.candidates.begin(), survey.candidates.end(),
        [](const Segment& a, const Segment& b) { return a.chunk_begin < b.chunk_begin; });
    survey.read_sides = survey.sides;
  }
}

void survey_candidates(const std::vector<Layer>& layers, const Chosen& chosen,
                       const std::vector<Bracket>& brackets, std::vector<Survey>& surveys,
                       cpu::Team& team) {
  struct Task {
    std::size_t layer;
    const Segment* segment;
  };
  std::vector<Task> tasks;
  std::int64_t total = 0;
  for (const std::size_t i : chosen) {
    Survey& survey = surveys[i];
    survey.sides = survey.read_sides;
    survey.sides.bracket = brackets[i];
    survey.lay_out_slots(slot_count(layers[i], least_slots_of_candidates));
    for (const Segment& segment : survey.candidates) {
      tasks.push_back({i, &segment});
      total += segment.count;
    }
  }
  std::mutex mutex;
  team.for_each(static_cast<std::int64_t>(tasks.size()), total, [&](std::int64_t t, int) {
    const Task task = tasks[static_cast<std::size_t>(t)];
    const Dtype dtype = layers[task.layer].dtype;
    Survey& survey = surveys[task.layer];
    Tally tally(survey);
    with_format(dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* keys = reinterpret_cast<const typename Format::Storage*>(task.segment->keys);
      tally.read<Format>(dtype, keys, task.segment->count, nullptr, [](auto, auto) {});
    });
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (survey.candidates.size() > 1) lock.lock();
    tally.merge_into(survey);
  });
}

std::vector<std::uint64_t> candidate_keys(const Layer& layer, const Survey& survey) {
  std::vector<std::uint64_t> keys;
  keys.reserve(static_cast<std::size_t>(survey.inside()));
  with_format(layer.dtype, [&](auto format) {
    using Key = typename decltype(format)::Storage;
    for (const Segment& segment : survey.candidates) {
      cpu::classify(layer.dtype, reinterpret_cast<const Key*>(segment.keys), segment.count,
                    survey.sides.bracket, survey.scale, nullptr,
                    [&](const cpu::Classified& block, const Key* inside) {
                      keys.insert(keys.end(), inside, inside + block.inside);
                    });
    }
  });
  return keys;
}

}  // namespace lampfast
