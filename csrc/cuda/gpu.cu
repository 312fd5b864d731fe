// A GPU as a place: what the stages ask for becomes launches on one stream, and what comes back is
// waited for where a stage needs it to go on, and nowhere else.
#include <algorithm>
#include <cmath>
#include <limits>
#include <utility>

#include "candidates.h"
#include "cuda/gpu.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/plan.h"
#include "cuda/runtime.h"
#include "cuda/scores.h"
#include "cuda/transfer.h"
#include "magnitude.h"
#include "walk.h"

namespace lampfast::cuda {
namespace {

using Keys = std::vector<std::uint64_t>;

class GpuPlace : public Place {
 public:
  GpuPlace(const Job& job, const Gpu& gpu)
      : job_(job),
        layers_(job.layers),
        device_(gpu.device),
        plan_(layers_, gpu.device, gpu.memory, gpu.host_memory),
        beyond_plan_(gpu.bytes == 0 ? nullptr : gpu.memory + plan_.needs.bytes),
        layout_(job, gpu.device, plan_.axes),
        notes_(layers_.size()),
        transfer_(gpu.device, reinterpret_cast<cudaStream_t>(gpu.stream)) {
    if (gpu.bytes == 0) return;  // for pack and keep, which need none
    if (gpu.bytes < plan_.needs.bytes || gpu.host_bytes < plan_.needs.host_bytes) {
      throw std::invalid_argument("a GPU needs more memory than it was lent");
    }
    const DeviceGuard guard(device_);
    transfer_.send(plan_.axes, layout_.axes);
  }

  void find_scales(const Chosen& chosen, std::vector<double>& scales) override {
    for_each_digest(chosen, [&](std::size_t i, const Digest& digest) {
      scales[i] = scale_for(digest.largest);
    });
  }

  void start_sketches(const Chosen& chosen) override {
    const DeviceGuard guard(device_);
    send(chosen, [](Work&, std::size_t) {});
    for (const Launch& launch : launches_) draw_sketches(launch, plan_.sketches);
    transfer_.receive(plan_.results, plan_.sketches, order_.size());
  }

  void finish_sketches(const Chosen&, std::vector<Sketch>& sketches) override {
    transfer_.wait();
    const auto* received = reinterpret_cast<const Sketch*>(plan_.results);
    for (std::size_t w = 0; w < order_.size(); ++w) sketches[order_[w]] = received[w];
  }

  void start_survey(const Chosen& chosen, std::vector<Survey>& surveys, bool limited) override {
    const DeviceGuard guard(device_);
    limited_ = limited;
    for (const std::size_t i : chosen) {
      Survey fresh = surveys[i].anew();
      fresh.fused = limited && writes_masks(i);
      fresh.lay_out_slots(Row::slots);
      surveys[i] = std::move(fresh);
      notes_[i].is_stored = false;
    }
    forget_unused_candidates();
    send_brackets(chosen, surveys);
    transfer_.clear(plan_.store.taken, order_.size());
    transfer_.clear(plan_.store.incomplete, order_.size());
    for (const Launch& launch : launches_) {
      survey_weights(launch, limited && job_.writes_masks(), plan_.store, plan_.rows);
    }
    receive_rows();
    transfer_.receive(plan_.results + part_count_ * sizeof(Row), plan_.store.incomplete,
                      order_.size());
  }

  void finish_survey(const Chosen& chosen, std::vector<Survey>& surveys) override {
    transfer_.wait();
    const auto* incomplete =
        reinterpret_cast<const std::uint32_t*>(plan_.results + part_count_ * sizeof(Row));
    for (std::size_t w = 0; w < order_.size(); ++w) {
      const std::size_t i = order_[w];
      add_rows(w, layers_[i].size, surveys[i]);
      if (!std::isfinite(surveys[i].sides.above_sum.value())) throw NotFinite();
      notes_[i].is_stored = stores_candidates(layers_[i].dtype) && incomplete[w] == 0;
    }
    for (const std::size_t i : chosen) {
      notes_[i].is_whole = !limited_;
      surveys[i].stored = notes_[i].is_stored || notes_[i].is_whole || layers_[i].size == 0;
      surveys[i].read_sides = surveys[i].sides;
    }
  }

  void survey_candidates(const Chosen& chosen, const std::vector<Bracket>& brackets,
                         std::vector<Survey>& surveys) override {
    const DeviceGuard guard(device_);
    for (const std::size_t i : chosen) {
      if (!notes_[i].is_stored) throw std::logic_error("a layer has no stored candidates");
      Survey& survey = surveys[i];
      survey.sides = survey.read_sides;
      survey.sides.bracket = brackets[i];
      survey.lay_out_slots(Row::slots);
    }
    send_brackets(chosen, surveys);
    for (const Launch& launch : launches_) {
      cuda::survey_candidates(launch, plan_.store, plan_.rows);
    }
    receive_rows();
    transfer_.wait();
    for (std::size_t w = 0; w < order_.size(); ++w) {
      Survey& survey = surveys[order_[w]];
      const Sides& read = survey.read_sides;
      add_rows(w, layers_[order_[w]].size - read.below - read.above, survey);
    }
  }

  void fetch_candidates(const Chosen& chosen, const std::vector<Survey>& surveys) override {
    const DeviceGuard guard(device_);
    Chosen batch;
    std::int64_t count = 0;
    for (const std::size_t i : chosen) {
      const std::int64_t inside = surveys[i].inside();
      if (notes_[i].is_whole) {
        read_keys(i, surveys[i].sides.bracket);
        continue;
      }
      if (count + inside > Plan::most_collected) {
        fetch_batch(batch, surveys);
        batch.clear();
        count = 0;
      }
      batch.push_back(i);
      count += inside;
    }
    fetch_batch(batch, surveys);
  }

  Keys candidate_keys(std::size_t layer, const Survey&) override {
    return std::move(notes_[layer].keys);
  }

  Natural exact_sum_above(std::size_t layer, std::uint64_t key) override {
    const DeviceGuard guard(device_);
    send({layer}, [key](Work& work, std::size_t) { work.low = key; });
    return with_format(layers_[layer].dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr std::size_t count = digits_of_sum<Format>;
      transfer_.clear(plan_.digits, count);
      for (const Launch& launch : launches_) sum_exactly(launch, plan_.digits);
      transfer_.receive(plan_.results, plan_.digits, count);
      transfer_.wait();
      const auto* digits = reinterpret_cast<const unsigned long long*>(plan_.results);
      Natural sum;
      for (int e = 0; e < Format::exponents; ++e) {
        for (int d = 0; d < digits_of_square<Format>; ++d, ++digits) {
          if (*digits != 0) sum += Natural(*digits).shifted(digit_bits * d + 2 * e);
        }
      }
      return sum;
    });
  }

  void prepare_apply(const Chosen& chosen, const std::vector<Cut>& cuts,
                     const std::vector<Survey>& surveys) override {
    const DeviceGuard guard(device_);
    for (const std::size_t i : chosen) {
      notes_[i].is_settled = !surveys.empty() && surveys[i].fused && notes_[i].is_stored &&
                             surveys[i].holds(cuts[i], layers_[i].size);
    }
    Chosen changed;
    std::copy_if(chosen.begin(), chosen.end(), std::back_inserter(changed),
                 [&](std::size_t i) { return job_.writes_masks() || cuts[i].pruned > 0; });
    bool has_ties = false;
    bool counts_ties = false;
    send(changed, [&](Work& work, std::size_t i) {
      const Cut& cut = cuts[i];
      work.low = cut.key;
      work.ties = cut.ties;
      work.tie_slot = tie_slot(i, cut.key);
      has_ties = has_ties || cut.ties > 0;
      counts_ties = counts_ties || (cut.ties > 0 && work.tie_slot < 0);
    });
    for (const Launch& launch : launches_) {
      if (counts_ties) count_ties(launch, plan_.tie_counts);
      if (has_ties) find_ties(launch, plan_.tie_counts, plan_.rows, plan_.first_kept);
      load_apply(launch.dtype);
    }
    transfer_.wait();
  }

  void apply(const Chosen&, const std::vector<Cut>&, const std::vector<Survey>&) override {
    const DeviceGuard guard(device_);
    for (const Launch& launch : launches_) {
      if (launch.is_settled) {
        settle_masks(launch, plan_.store, plan_.first_kept);
      } else {
        (job_.writes_masks() ? mask : zero)(launch, plan_.first_kept);
      }
    }
  }

  void census(const Chosen& chosen, std::vector<Cut>& cuts) override {
    for (const std::size_t i : chosen) {
      const std::uint64_t end = not_finite_key(layers_[i].dtype);
      cuts[i] = {end, 0, 0, magnitude_of(layers_[i].dtype, end)};
    }
    for_each_digest(chosen, [&](std::size_t i, const Digest& digest) {
      if (digest.first_not_finite != no_index) throw NotFinite();
      const std::uint64_t key = std::min<std::uint64_t>(digest.smallest, cuts[i].key);
      const auto zeros = static_cast<std::int64_t>(digest.zeros);
      cuts[i] = {key, 0, zeros, magnitude_of(layers_[i].dtype, key)};
    });
  }

  std::optional<Element> first_not_finite(const Chosen& chosen) override {
    std::optional<Element> first;
    for_each_digest(chosen, [&](std::size_t i, const Digest& digest) {
      if (digest.first_not_finite == no_index) return;
      const Element found{i, static_cast<std::int64_t>(digest.first_not_finite)};
      if (!first || found < *first) first = found;
    });
    return first;
  }

  void score(const Chosen& chosen) override {
    const DeviceGuard guard(device_);
    transfer_.clear(plan_.not_finite, 1);
    for (const Batch& batch : batches(layers_, chosen)) {
      std::int64_t out = 0;
      std::int64_t span = 0;
      send(batch.layers, [&](Work& work, std::size_t i) {
        work.out = out;
        work.first_span = span;
        out += layers_[i].size;
        span += spans_of(layers_[i]);
      });
      score_batch(batch, plan_.works, beyond_plan_, plan_.not_finite, transfer_.stream());
      transfer_.wait();  // the works of the next batch take their place
    }
    transfer_.receive(plan_.results, plan_.not_finite, 1);
    transfer_.wait();
    if (*reinterpret_cast<const std::uint32_t*>(plan_.results) != 0) throw NotFinite();
  }

  void pack(const Chosen& chosen, const PackedMasks& masks) override {
    const DeviceGuard guard(device_);
    cuda::pack(layers_, chosen, masks, transfer_.stream());
  }
  void keep(const Chosen& chosen, const PackedMasks& masks) override {
    const DeviceGuard guard(device_);
    cuda::keep(layers_, chosen, masks, transfer_.stream());
  }

 private:
  static constexpr unsigned long long no_index = std::numeric_limits<unsigned long long>::max();

  // What is known of a layer beside its survey.
  struct Note {
    bool is_stored = false;   // its candidates are in the store
    bool is_whole = false;    // all of its weights are its candidates
    bool is_settled = false;  // its mask needs only its candidates
    bool has_rows = false;    // of this bracket:
    Bracket row_bracket{};
    int row_slot_bits = 0;
    Keys keys;  // fetched
  };

  bool writes_masks(std::size_t i) const {
    return job_.writes_masks() && layout_.works[i].dense && stores_candidates(layers_[i].dtype);
  }

  // --- to the GPU ---

  // Sends the works of the chosen layers, and makes a launch for each dtype, and each part of it
  // whose masks are to be settled. fill(work, layer) adds what the kernels need to know. What was
  // sent before must have arrived.
  template <class Fill>
  void send(const Chosen& chosen, Fill&& fill) {
    order_.clear();
    std::copy_if(chosen.begin(), chosen.end(), std::back_inserter(order_),
                 [&](std::size_t i) { return layers_[i].size > 0; });
    const auto group = [&](std::size_t i) {
      return std::pair{layers_[i].dtype, notes_[i].is_settled};
    };
    std::stable_sort(order_.begin(), order_.end(),
                     [&](std::size_t a, std::size_t b) { return group(a) < group(b); });
    std::vector<Work>& works = sent_works_;
    works.clear();
    works.reserve(order_.size());
    launches_.clear();
    part_count_ = 0;
    for (const std::size_t i : order_) {
      const auto [dtype, is_settled] = group(i);
      if (launches_.empty() || launches_.back().dtype != dtype ||
          launches_.back().is_settled != is_settled) {
        const auto first = static_cast<int>(works.size());
        launches_.push_back(
            {dtype, is_settled, plan_.works + first, first, 0, 0, transfer_.stream()});
      }
      Launch& launch = launches_.back();
      Work work = layout_.works[i];
      work.first_block = launch.blocks;
      work.first_part = static_cast<std::int64_t>(part_count_);
      fill(work, i);
      works.push_back(work);
      ++launch.count;
      launch.blocks += spans_of(layers_[i]);
      part_count_ += static_cast<std::size_t>(parts_of(spans_of(layers_[i])));
    }
    transfer_.send(plan_.works, works);
  }

  void send_brackets(const Chosen& chosen, const std::vector<Survey>& surveys) {
    send(chosen, [&](Work& work, std::size_t i) {
      const Survey& survey = surveys[i];
      work.low = survey.sides.bracket.low;
      work.high = survey.sides.bracket.high;
      work.scale = survey.scale;
      work.slot_bits = survey.slot_bits;
      work.share = limited_ ? CandidateBudget::fair_share(layers_[i].size) : 0;
      Note& note = notes_[i];
      note.has_rows = true;
      note.row_bracket = survey.sides.bracket;
      note.row_slot_bits = survey.slot_bits;
    });
  }

  // Where the rows of a layer count the elements with a key, span by span in row-major order.
  int tie_slot(std::size_t i, std::uint64_t key) const {
    const Note& note = notes_[i];
    const bool in_order = layout_.works[i].by_index.count == 0;
    if (!note.has_rows || note.row_slot_bits > 0 || !in_order) return -1;
    if (key < note.row_bracket.low || key >= note.row_bracket.high) return -1;
    return static_cast<int>(key - note.row_bracket.low);
  }

  // --- what comes back ---

  void receive_rows() {
    for (Launch launch : launches_) {
      launch.blocks = 0;
      for (int w = 0; w < launch.count; ++w) {
        const std::size_t i = order_[static_cast<std::size_t>(launch.first + w)];
        launch.blocks += parts_of(spans_of(layers_[i]));
      }
      sum_rows(launch, plan_.rows, plan_.parts);
    }
    transfer_.receive(plan_.results, plan_.parts, part_count_);
    next_part_ = reinterpret_cast<const Row*>(plan_.results);
  }

  // Adds the w-th work's parts, of so many elements, to its layer's survey; in the works' order.
  void add_rows(std::size_t w, std::int64_t elements, Survey& survey) {
    Sides found;
    std::int64_t inside = 0;
    for (std::int64_t p = parts_of(spans_of(layers_[order_[w]])); p > 0; --p, ++next_part_) {
      const Row& part = *next_part_;
      found.below += part.below;
      inside += part.inside;
      found.above_sum.add(part.above_sum);
      for (std::size_t s = 0; s < survey.slots.size(); ++s) {
        if (part.counts[s] > 0) add_slot(part, s, key_shift(survey.slot_bits), survey.slots[s]);
      }
    }
    found.above = elements - found.below - inside;
    survey.sides.add(found);
  }

  static void add_slot(const Row& row, std::size_t s, int shift, Slot& slot) {
    const std::uint64_t first = std::uint64_t{row.firsts[s]} << shift;
    const std::uint64_t last = ((std::uint64_t{row.lasts[s]} + 1) << shift) - 1;
    slot.first = slot.count > 0 ? std::min(slot.first, first) : first;
    slot.last = slot.count > 0 ? std::max(slot.last, last) : last;
    slot.count += row.counts[s];
    slot.sum += row.sums[s];
  }

  template <class Body>
  void for_each_digest(const Chosen& chosen, Body&& body) {
    const DeviceGuard guard(device_);
    send(chosen, [](Work&, std::size_t) {});
    sent_digests_.assign(order_.size(), {0, no_index, 0, no_index});
    transfer_.send(plan_.digests, sent_digests_);
    for (const Launch& launch : launches_) digest(launch, plan_.digests);
    transfer_.receive(plan_.results, plan_.digests, order_.size());
    transfer_.wait();
    const auto* digests = reinterpret_cast<const Digest*>(plan_.results);
    for (std::size_t w = 0; w < order_.size(); ++w) body(order_[w], digests[w]);
  }

  // --- candidates ---

  // Candidates of layers that are read again are of no use, but their room is free only when no
  // others are in use: it is given out in one direction.
  void forget_unused_candidates() {
    const auto is_stored = [](const Note& note) { return note.is_stored; };
    if (std::any_of(notes_.begin(), notes_.end(), is_stored)) return;
    transfer_.clear(plan_.store.used_bytes, 1);
    transfer_.clear(plan_.store.used_segments, 1);
  }

  void fetch_batch(const Chosen& batch, const std::vector<Survey>& surveys) {
    if (batch.empty()) return;
    std::int64_t count = 0;
    std::vector<std::int64_t> firsts;
    send(batch, [&](Work& work, std::size_t i) {
      work.low = surveys[i].sides.bracket.low;
      work.high = surveys[i].sides.bracket.high;
      work.out = count;
      firsts.push_back(count);
      count += surveys[i].inside();
    });
    transfer_.clear(plan_.found, order_.size());
    for (const Launch& launch : launches_) {
      collect_candidates(launch, plan_.store, plan_.found, plan_.collected);
    }
    transfer_.receive(plan_.results, plan_.collected, static_cast<std::size_t>(count));
    transfer_.wait();
    const auto* keys = reinterpret_cast<const std::uint64_t*>(plan_.results);
    for (std::size_t w = 0; w < order_.size(); ++w) {
      const std::size_t i = order_[w];
      notes_[i].keys.assign(keys + firsts[w], keys + firsts[w] + surveys[i].inside());
    }
  }

  // All keys of a layer inside a bracket, by way of a copy of the layer in the host.
  void read_keys(std::size_t i, const Bracket& bracket) {
    const Layer& layer = layers_[i];
    std::int64_t first = 0;
    std::int64_t last = 0;
    for (std::size_t a = 0; a < layer.shape.size(); ++a) {
      const std::int64_t reach = (layer.shape[a] - 1) * layer.strides[a];
      (reach < 0 ? first : last) += reach;
    }
    const std::int64_t width = item_size(layer.dtype);
    std::vector<std::byte> copy(static_cast<std::size_t>((last - first + 1) * width));
    transfer_.receive(copy.data(), layer.data + first * width, copy.size());
    transfer_.wait();
    Keys& keys = notes_[i].keys;
    keys.clear();
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* data = reinterpret_cast<const typename Format::Storage*>(copy.data()) - first;
      const Walk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
      walk.runs(0, layer.size, [&](auto, const auto& offsets, std::int64_t length) {
        for (std::int64_t j = 0; j < length; ++j) {
          const auto key = Format::key(data[offsets[0] + j * walk.step()[0]]);
          if (key >= bracket.low && key < bracket.high) keys.push_back(key);
        }
      });
    });
  }

  const Job& job_;
  const std::vector<Layer>& layers_;
  const int device_;
  const Plan plan_;
  std::byte* const beyond_plan_;  // for scores
  const Layout layout_;
  std::vector<Note> notes_;
  bool limited_ = true;

  // What was last sent, which is read until the next wait:
  std::vector<Work> sent_works_;
  std::vector<Digest> sent_digests_;

  // Of the works that were last sent:
  Chosen order_;  // their layers
  std::vector<Launch> launches_;
  std::size_t part_count_ = 0;
  const Row* next_part_ = nullptr;

  Transfer transfer_;  // goes first, as it waits for what still uses the others
};

}  // namespace

bool built() { return true; }

bool usable() {
  int count = 0;
  const bool is_usable = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  return is_usable;
}

Needs needs(const std::vector<Layer>& layers, int device) {
  return Plan(layers, device, nullptr, nullptr).needs;
}

Needs needs_of_scores(const std::vector<Layer>& layers, int device) {
  const DeviceGuard guard(device);
  Needs needs = cuda::needs(layers, device);
  Chosen there;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].device == device) there.push_back(i);
  }
  std::int64_t most = 0;
  for (const Batch& batch : batches(layers, there)) most = std::max(most, score_bytes(batch));
  needs.bytes += most;
  return needs;
}

std::unique_ptr<Place> gpu_place(const Job& job, const Gpu& gpu) {
  return std::make_unique<GpuPlace>(job, gpu);
}

}  // namespace lampfast::cuda
