#include "survey.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <mutex>

#include "chunks.h"
#include "cpu/parallel.h"
#include "lanes.h"
#include "magnitude.h"
#include "walk.h"

namespace lampfast {
namespace {

constexpr std::int64_t most_slots = 512;
constexpr std::int64_t least_slots = 8;
constexpr std::int64_t weights_per_slot = 256;  // keeps the slots of small layers small

// As many slots as the layer's size allows, each a power of two of keys wide.
void lay_out_slots(std::int64_t size, Survey& survey) {
  const std::int64_t wanted = std::clamp(size / weights_per_slot, least_slots, most_slots);
  const std::uint64_t keys = survey.bracket.high - survey.bracket.low;
  survey.slot_bits = 0;
  while ((keys >> survey.slot_bits) >= static_cast<std::uint64_t>(wanted)) ++survey.slot_bits;
  survey.slots.assign(static_cast<std::size_t>((keys >> survey.slot_bits) + 1), Slot{});
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
      survey.slots[i].sum.add(slots[i].sum);
    }
    survey.stored = survey.stored && stored;
    survey.candidates.insert(survey.candidates.end(), candidates.begin(), candidates.end());
  }
};

// Classifies keys against one bracket, a block that fits the first-level cache at a time.
template <class Format>
class Classifier {
 public:
  using Key = typename Format::Storage;

  explicit Classifier(const Survey& survey)
      : low_(static_cast<Key>(survey.bracket.low)),
        high_(static_cast<Key>(survey.bracket.high)),
        scale_(survey.scale),
        slot_bits_(survey.slot_bits) {}

  // Calls sink(keys, count) with the keys inside the bracket; the data may be overwritten then.
  template <class Sink>
  void read(const Key* data, std::int64_t length, Tally& tally, Sink&& sink) {
    for (std::int64_t begin = 0; begin < length; begin += block) {
      const auto count = static_cast<int>(std::min<std::int64_t>(block, length - begin));
      read_keys(data + begin, count);
      tally_outside(tally);
      const int inside = compact();
      if (inside == 0) continue;
      for (int i = 0; i < inside; ++i) {
        Slot& slot = tally.slots[static_cast<std::size_t>((inside_[i] - low_) >> slot_bits_)];
        ++slot.count;
        slot.sum.add(scaled_square<Format>(inside_[i], scale_));
      }
      sink(inside_, inside);
    }
  }

 private:
  static constexpr int block = 2048;
  static constexpr int unit = 2 * lane_count;
  static_assert(block <= Sum::leaf_terms);

  // Short plain loops, each of a form that compilers vectorise.

  void read_keys(const Key* data, int count) {
    for (int i = 0; i < count; ++i) keys_[i] = Format::key(data[i]);
    for (count_ = count; count % unit != 0; ++count) keys_[count] = 0;
  }

  void tally_outside(Tally& tally) const {
    int below = 0;
    int above = 0;
    for (int i = 0; i < count_; ++i) {
      below += keys_[i] < low_;
      above += keys_[i] >= high_;
    }
    tally.below += below;
    tally.above += above;
    // Two sums for every lane, so that an addition need not wait for the one before it.
    std::array<Lanes<double>, 2> sums{};
    for (int i = 0; i < count_; i += unit) {
      for (int half = 0; half < 2; ++half) {
        Lanes<Key> keys;
        load(keys, keys_ + i + half * lane_count);
        keys = keys >= high_ ? keys : keys ^ keys;
        Lanes<double> value;
        values<Format>(value, keys);
        if constexpr (sizeof(Key) == 8) value *= scale_;
        sums[static_cast<std::size_t>(half)] += value * value;
      }
    }
    const Lanes<double> both = sums[0] + sums[1];
    double sum = 0.0;
    for (int lane = 0; lane < lane_count; ++lane) sum += both[lane];
    tally.above_sum.add(sum);
  }

  int compact() {
    const auto width = static_cast<Key>(high_ - low_);
    for (int i = 0; i < count_; ++i) {
      flags_[i] = static_cast<Key>(keys_[i] - low_) < width ? 1 : 0;
    }
    int inside = 0;
    for (int i = 0; i < count_; i += 8) {
      std::uint64_t any;
      std::memcpy(&any, &flags_[i], sizeof(any));
      if (any == 0) continue;
      const int end = std::min(i + 8, count_);
      for (int j = i; j < end; ++j) {
        inside_[inside] = keys_[j];
        inside += flags_[j];
      }
    }
    return inside;
  }

  Key low_;
  Key high_;
  double scale_;
  int slot_bits_;
  int count_ = 0;
  alignas(64) Key keys_[block];
  alignas(64) std::uint8_t flags_[block];
  alignas(64) Key inside_[block];
};

// Calls body(elements, count) for stretches that make up the chunk: its runs where these are long,
// else copies of many runs together.
template <class Element, class Body>
void for_each_stretch(const Layer& layer, const Element* data, const Chunk& chunk, Body&& body) {
  constexpr std::int64_t long_run = 256;
  std::array<Element, 4 * long_run> gathered;
  std::int64_t count = 0;
  const auto flush = [&] {
    if (count > 0) body(gathered.data(), count);
    count = 0;
  };
  Walk<1>(layer.shape, {&layer.strides}, Order::memory)
      .runs(chunk.begin, chunk.end, [&](auto, const auto& offsets, std::int64_t length) {
        if (length >= long_run) {
          body(data + offsets[0], length);
          return;
        }
        if (count + length > static_cast<std::int64_t>(gathered.size())) flush();
        std::copy_n(data + offsets[0], length, gathered.data() + count);
        count += length;
      });
  flush();
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
    lay_out_slots(layers[i].size, fresh);
    surveys[i] = std::move(fresh);
  }
  std::vector<CandidateWriter> writers(static_cast<std::size_t>(threads), CandidateWriter(store));
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
      Classifier<Format> classifier(survey);
      const auto keep = [&](const Key* keys, std::int64_t count) {
        tally.stored = tally.stored && writer.append(keys, count, tally.candidates);
      };
      for_each_stretch(layer, data, chunk, [&](const Key* keys, std::int64_t length) {
        classifier.read(keys, length, tally, keep);
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
    lay_out_slots(layers[i].size, surveys[i]);
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
      Classifier<Format>(survey).read(keys, task.segment->count, tally,
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
