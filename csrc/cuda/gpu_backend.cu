// The GPU backend: what the stages ask for becomes launches on one stream, and the host waits only
// where a stage needs the results to go on.
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <tuple>
#include <utility>

#include "core/candidate_budget.h"
#include "core/key_format.h"
#include "core/log_histogram.h"
#include "core/strided_walk.h"
#include "cuda/gpu_backend.h"
#include "cuda/kernels.h"
#include "cuda/layout.h"
#include "cuda/runtime.h"
#include "cuda/scores.h"
#include "cuda/transfer.h"
#include "cuda/workspace.h"

namespace lampfast::cuda {
namespace {

using Keys = std::vector<std::uint64_t>;

class GpuBackend : public Backend {
 public:
  GpuBackend(const Job& job, const Gpu& gpu)
      : layers_(job.layers),
        targets_(job.targets),
        device_(gpu.device),
        workspace_(layers_, gpu.device, gpu.memory, gpu.host_memory),
        beyond_workspace_(gpu.bytes == 0 ? nullptr : gpu.memory + workspace_.needs.bytes),
        layout_(job, gpu.device, workspace_.axes),
        reads_(layers_.size()),
        transfer_(gpu.device, reinterpret_cast<cudaStream_t>(gpu.stream)) {
    if (gpu.bytes == 0) return;  // packed masks need no memory
    if (gpu.bytes < workspace_.needs.bytes || gpu.host_bytes < workspace_.needs.host_bytes) {
      throw std::invalid_argument("a GPU needs more memory than it was lent");
    }
    const DeviceGuard guard(device_);
    std::copy(layout_.axes.begin(), layout_.axes.end(), workspace_.sent_axes);
    transfer_.send(workspace_.axes, workspace_.sent_axes, layout_.axes.size());
  }

  std::vector<std::uint64_t> largest_keys(const LayerIds& ids) override {
    std::vector<std::uint64_t> largest;
    for (const DeviceStats& stats : find_all_stats(ids)) largest.push_back(stats.largest);
    return largest;
  }

  std::vector<LogHistogram> draw(const LayerIds& ids) override {
    const DeviceGuard guard(device_);
    send(ids, [](Work&, std::size_t) {});
    for (const Launch& launch : launches_) draw_histograms(launch, workspace_.histograms);
    transfer_.receive(workspace_.results, workspace_.histograms, works_.size());
    transfer_.wait();
    std::vector<LogHistogram> histograms(ids.size());
    const auto* received = reinterpret_cast<const DeviceHistogram*>(workspace_.results);
    for (std::size_t w = 0; w < works_.size(); ++w) {
      histograms[works_[w].position] = histogram_of(layers_[works_[w].id].dtype, received[w]);
    }
    return histograms;
  }

  std::vector<GroupTallies> tally(const LayerIds& ids,
                                  const std::vector<TallyRequest>& requests) override {
    const DeviceGuard guard(device_);
    send(ids, [&](Work& work, std::size_t position) {
      work.low = requests[position].key;
      work.scale = requests[position].scale;
    });
    for (const Launch& launch : launches_) tally_draws(launch, workspace_.tallies);
    transfer_.receive(workspace_.results, workspace_.tallies, works_.size());
    transfer_.wait();
    std::vector<GroupTallies> tallies(ids.size());
    const auto* received = reinterpret_cast<const DeviceTallies*>(workspace_.results);
    for (std::size_t w = 0; w < works_.size(); ++w) {
      GroupTallies& found = tallies[works_[w].position];
      std::copy_n(received[w].drawn, draw_groups, found.drawn.begin());
      std::copy_n(received[w].below, draw_groups, found.below.begin());
      std::copy_n(received[w].above, draw_groups, found.above.begin());
    }
    return tallies;
  }

  // A partition with empty intervals.
  std::vector<Tally> probe(const LayerIds& ids,
                           const std::vector<TallyRequest>& requests) override {
    std::vector<PartitionRequest> empty;
    empty.reserve(ids.size());
    for (const auto& [key, scale] : requests) empty.push_back({{key, key}, scale, false});
    const std::vector<PartitionResult> found =
        partition(ids, empty, MaskSink(), StoreLimit::budget);
    std::vector<Tally> tallies;
    tallies.reserve(ids.size());
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const Sides& sides = found[p].found.sides;
      // A partition scales float64 only.
      const bool is_scaled = layers_[ids[p]].dtype == Dtype::float64;
      const double scale = is_scaled ? 1.0 : requests[p].scale;
      tallies.push_back(
          {static_cast<double>(sides.below), sides.above_sum.value() * scale * scale});
    }
    return tallies;
  }

  std::int64_t most_bins() const override { return Row::bins; }
  std::int64_t most_sorted(std::size_t id) const override { return reads_[id].most_sorted; }

  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         const MaskSink& masks, StoreLimit limit) override {
    const DeviceGuard guard(device_);
    const bool is_limited = limit == StoreLimit::budget;
    const bool writes_masks = is_limited && masks.wants_masks();
    for (const std::size_t id : ids) reads_[id] = {};
    forget_unused_candidates();
    std::vector<Partition> found = send_requests(ids, requests, is_limited, Rooms(ids.size()));
    transfer_.clear(workspace_.store.taken, works_.size());
    transfer_.clear(workspace_.store.incomplete, works_.size());
    for (const Launch& launch : launches_) {
      partition_weights(launch, writes_masks, workspace_.store, workspace_.rows);
    }
    receive_rows();
    transfer_.receive(workspace_.results + part_count_ * sizeof(Row), workspace_.store.incomplete,
                      works_.size());
    transfer_.wait();
    const auto* incomplete =
        reinterpret_cast<const std::uint32_t*>(workspace_.results + part_count_ * sizeof(Row));
    for (std::size_t w = 0; w < works_.size(); ++w) {
      const std::size_t id = works_[w].id;
      const std::size_t position = works_[w].position;
      add_rows(w, layers_[id].size, found[position]);
      reads_[id].stored.is_complete = stores_candidates(layers_[id].dtype) && incomplete[w] == 0;
    }
    std::vector<PartitionResult> results;
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const std::size_t id = ids[p];
      Read& read = reads_[id];
      read.holds_all_weights = !is_limited;
      read.stored.sides = found[p].sides;
      read.inside = found[p].inside();
      read.stored.is_mask_written = writes_masks && can_write_mask(id);
      const bool is_stored = read.stored.is_complete || !is_limited || layers_[id].size == 0;
      results.push_back({std::move(found[p]), is_stored});
    }
    return results;
  }

  std::vector<Partition> narrow(const LayerIds& ids,
                                const std::vector<PartitionRequest>& requests) override {
    const DeviceGuard guard(device_);
    for (const std::size_t id : ids) {
      if (!reads_[id].stored.is_complete) {
        throw std::logic_error("a layer has no stored candidates");
      }
    }
    const Rooms rooms = rooms_for_candidates(ids, requests);
    std::vector<Partition> found = send_requests(ids, requests, true, rooms);
    for (const Launch& launch : launches_) {
      partition_candidates(launch, workspace_.store, workspace_.rows);
    }
    receive_rows();
    if (rooms.total > 0) receive_keys(rooms);
    transfer_.wait();
    for (std::size_t w = 0; w < works_.size(); ++w) {
      const std::size_t id = works_[w].id;
      const std::size_t position = works_[w].position;
      const Sides& read = reads_[id].stored.sides;
      found[position].sides.add(read);
      add_rows(w, layers_[id].size - read.below - read.above, found[position]);
      keep_keys(w, found[position].inside(), rooms);
    }
    return found;
  }

  void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
               const KeySink& sink) override {
    const DeviceGuard guard(device_);
    LayerIds batch;
    std::vector<KeyRequest> batch_requests;
    std::int64_t count = 0;
    for (std::size_t p = 0; p < ids.size(); ++p) {
      // Ranks may ask for more keys of a layer than can be collected at once.
      if (reads_[ids[p]].holds_all_weights || requests[p].count > Workspace::most_collected) {
        sink(ids[p], keys_of_weights(ids[p], requests[p].interval));
        continue;
      }
      if (requests[p].count == 0) {
        sink(ids[p], Keys());
        continue;
      }
      if (const Keys* kept = reads_[ids[p]].keys_in(requests[p])) {
        sink(ids[p], Keys(*kept));
        continue;
      }
      if (count + requests[p].count > Workspace::most_collected) {
        collect_batch(batch, batch_requests, sink);
        batch.clear();
        batch_requests.clear();
        count = 0;
      }
      batch.push_back(ids[p]);
      batch_requests.push_back(requests[p]);
      count += requests[p].count;
    }
    collect_batch(batch, batch_requests, sink);
  }

  BigUint exact_sum_above(std::size_t id, std::uint64_t key) override {
    const DeviceGuard guard(device_);
    send({id}, [key](Work& work, std::size_t) { work.low = key; });
    return with_format(layers_[id].dtype, [&](auto format) {
      using Format = decltype(format);
      constexpr std::size_t count = digits_of_sum<Format>;
      transfer_.clear(workspace_.digits, count);
      for (const Launch& launch : launches_) sum_exactly(launch, workspace_.digits);
      transfer_.receive(workspace_.results, workspace_.digits, count);
      transfer_.wait();
      const auto* digits = reinterpret_cast<const unsigned long long*>(workspace_.results);
      BigUint sum;
      for (int e = 0; e < Format::exponents; ++e) {
        for (int d = 0; d < digits_of_square<Format>; ++d, ++digits) {
          if (*digits != 0) sum += BigUint(*digits).shifted(digit_bits * d + 2 * e);
        }
      }
      return sum;
    });
  }

  // In the host: no kernel does this yet.
  std::vector<std::int64_t> count_ties(std::size_t id, const TieRequest& request) override {
    const DeviceGuard guard(device_);
    std::vector<std::int64_t> counts(request.parts, 0);
    for_each_weight(id, *request.index_steps, [&](std::uint64_t key, std::int64_t offset) {
      if (key != request.key) return;
      const std::int64_t part = (request.first + offset - request.begin) >> request.bits;
      if (part < 0 || part >= static_cast<std::int64_t>(request.parts)) return;
      ++counts[static_cast<std::size_t>(part)];
    });
    return counts;
  }

  void prepare(const LayerIds& ids, const std::vector<LayerThreshold>& thresholds,
               const MaskSink& masks) override {
    const DeviceGuard guard(device_);
    wants_masks_ = masks.wants_masks();
    LayerIds changed;
    for (const std::size_t id : ids) {
      Read& read = reads_[id];
      read.settles_mask = read.stored.is_mask_written && read.stored.is_complete &&
                          read.stored.decides(thresholds[id], layers_[id].size);
      if (wants_masks_ || thresholds[id].pruned > 0) changed.push_back(id);
    }
    std::array<bool, 4> uses{};  // by TieCounts
    send(changed, [&](Work& work, std::size_t position) {
      const std::size_t id = changed[position];
      const LayerThreshold& threshold = thresholds[id];
      work.low = threshold.key;
      work.ties = threshold.ties;
      work.tie_bin = tie_bin(id, threshold.key);
      work.tie_counts = threshold.ties > 0 ? tie_counts(id, threshold.key) : TieCounts::none;
      const bool has_indices = threshold.ties == 0 || work.by_memory.count == 0;
      work.is_plain = work.aligned && has_indices && (wants_masks_ || work.own_target);
      uses[static_cast<std::size_t>(work.tie_counts)] = true;
    });
    transfer_.mark_last_copy();
    const auto has = [&](TieCounts counts) { return uses[static_cast<std::size_t>(counts)]; };
    const bool has_ties =
        has(TieCounts::in_rows) || has(TieCounts::of_candidates) || has(TieCounts::of_weights);
    for (const Launch& launch : launches_) {
      if (has(TieCounts::of_weights)) cuda::count_ties(launch, workspace_.tie_counts);
      if (has(TieCounts::of_candidates)) {
        count_stored_ties(launch, workspace_.store, workspace_.tie_counts);
      }
      if (has_ties) {
        find_ties(launch, workspace_.tie_counts, workspace_.rows, workspace_.first_kept);
      }
      load_commit(launch);
    }
  }

  std::optional<CommitFailure> commit() noexcept override {
    bool has_begun = false;
    try {
      const DeviceGuard guard(device_);
      for (const Launch& launch : launches_) {
        if (launch.settles_mask) {
          settle_masks(launch, workspace_.store, workspace_.first_kept);
        } else {
          (wants_masks_ ? mask : zero)(launch, workspace_.first_kept);
        }
        has_begun = true;
      }
      for (const GroupBox& box : boxes_) {
        zero_groups(box, layers_[box.layer], targets_[box.layer], transfer_.stream());
        has_begun = true;
      }
    } catch (...) {
      return CommitFailure{std::current_exception(), has_begun};
    }
    return std::nullopt;
  }

  void mask_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) override {
    const std::vector<std::uint64_t> largest = largest_keys(ids);
    for (std::size_t p = 0; p < ids.size(); ++p) {
      if (largest[p] >= not_finite_key(layers_[ids[p]].dtype)) throw NotFinite();
    }
    const DeviceGuard guard(device_);
    for (const GroupBox& box : boxes(ids, patterns)) {
      cuda::mask_groups(box, layers_[box.layer], targets_[box.layer], transfer_.stream());
    }
  }
  void prepare_groups(const LayerIds& ids, const std::vector<GroupPattern>& patterns) override {
    launches_.clear();
    boxes_ = boxes(ids, patterns);
    const DeviceGuard guard(device_);
    for (const std::size_t id : ids) load_zero_groups(layers_[id], targets_[id]);
  }

  std::vector<LayerStats> stats(const LayerIds& ids) override {
    std::vector<LayerStats> all;
    for (const DeviceStats& stats : find_all_stats(ids)) {
      if (stats.first_not_finite != no_index) throw NotFinite();
      all.push_back({static_cast<std::int64_t>(stats.zeros), stats.smallest});
    }
    return all;
  }

  std::optional<ElementIndex> first_not_finite(const LayerIds& ids) override {
    std::optional<ElementIndex> first;
    const std::vector<DeviceStats> all = find_all_stats(ids);
    for (std::size_t p = 0; p < ids.size(); ++p) {
      if (all[p].first_not_finite == no_index) continue;
      const ElementIndex found{ids[p], static_cast<std::int64_t>(all[p].first_not_finite)};
      if (!first || found < *first) first = found;
    }
    return first;
  }

  void score(const LayerIds& ids) override {
    const DeviceGuard guard(device_);
    const std::vector<Batch> all = batches(layers_, ids);
    std::size_t count = 0;
    for (const Batch& batch : all) count = put_works(batch, count);
    transfer_.send(workspace_.works, workspace_.sent_works, count);
    transfer_.clear(workspace_.not_finite, 1);
    const Work* works = workspace_.works;
    for (const Batch& batch : all) {
      score_batch(batch, works, beyond_workspace_, workspace_.not_finite, transfer_.stream());
      works += batch.layers.size();
    }
    transfer_.receive(workspace_.results, workspace_.not_finite, 1);
    transfer_.wait();
    if (*reinterpret_cast<const std::uint32_t*>(workspace_.results) != 0) throw NotFinite();
  }

  void pack(const LayerIds& ids, const PackedMasks& masks) override {
    const DeviceGuard guard(device_);
    cuda::pack(layers_, ids, masks, transfer_.stream());
  }
  void apply_packed_masks(const LayerIds& ids, const PackedMasks& masks) override {
    const DeviceGuard guard(device_);
    cuda::apply_packed_masks(layers_, ids, masks, transfer_.stream());
  }

 private:
  static constexpr unsigned long long no_index = std::numeric_limits<unsigned long long>::max();
  // So few candidates of a layer are sorted, or expected ones sent along with bins, at once.
  static constexpr std::int64_t most_few = test_sizes ? 4 : 16;
  static constexpr double most_expected = 8.0 * most_few;

  std::vector<GroupBox> boxes(const LayerIds& ids,
                              const std::vector<GroupPattern>& patterns) const {
    std::vector<GroupBox> all;
    for (const std::size_t id : ids) {
      for (GroupBox& box : boxes_of(id, layers_[id], targets_[id], patterns[id])) {
        all.push_back(std::move(box));
      }
    }
    return all;
  }

  // What the last read of a layer has left.
  struct Read {
    Stored stored;                   // what of the layer is in the workspace's store
    bool holds_all_weights = false;  // it was read without a limit: keys come from the weights
    bool settles_mask = false;       // the commit completes its mask from the candidates
    // Whether the workspace has the rows of a read, and for which interval:
    bool has_rows = false;
    KeyInterval row_interval{};
    int row_bin_bits = 0;
    std::int64_t inside = 0;       // how many elements this interval has
    std::int64_t most_sorted = 0;  // Backend::most_sorted
    Keys keys;                     // all of these, if keep_keys has got them

    // The keys that are asked for, or null if they are not here.
    const Keys* keys_in(const KeyRequest& request) const {
      const bool is_here = request.interval == row_interval && !keys.empty() &&
                           request.count == static_cast<std::int64_t>(keys.size());
      return is_here ? &keys : nullptr;
    }
  };

  // How many of the keys inside each requested interval are asked for together with its bins, so
  // that a collect right after need not wait for the GPU again. Zero until rooms_for_candidates
  // sets it.
  struct Rooms {
    explicit Rooms(std::size_t count) : of(count, 0), first(count, 0) {}

    std::vector<std::int64_t> of;  // by position
    std::vector<std::int64_t> first;
    std::int64_t total = 0;
  };

  // A few more than there should be, where these are few.
  Rooms rooms_for_candidates(const LayerIds& ids,
                             const std::vector<PartitionRequest>& requests) const {
    const auto width = [](const KeyInterval& i) { return static_cast<double>(i.high - i.low); };
    Rooms rooms(ids.size());
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const Read& read = reads_[ids[p]];
      const double share = width(requests[p].interval) / std::max(width(read.row_interval), 1.0);
      const double expected = static_cast<double>(read.inside) * std::min(share, 1.0);
      if (expected > most_expected) continue;
      const double more = 4.0 * std::sqrt(expected) + most_few;
      const std::int64_t room = std::min(read.inside, static_cast<std::int64_t>(expected + more));
      if (rooms.total + room > Workspace::most_collected) continue;
      rooms.of[p] = room;
      rooms.first[p] = rooms.total;
      rooms.total += room;
    }
    return rooms;
  }

  using Group = std::tuple<Dtype, bool, bool>;  // the same fields of a Launch

  // A layer's work among those that were last sent.
  struct SentWork {
    std::size_t id;
    std::size_t position;  // among the ids that were asked for
    std::size_t filled;    // among filled_works_
    Group group;
  };

  // Whether partition_weights can write a layer's mask.
  bool can_write_mask(std::size_t id) const {
    return layout_.works[id].dense && stores_candidates(layers_[id].dtype);
  }

  // --- to the GPU ---

  // Sends the works of the layers, and prepares one launch for each dtype, or several if its layers
  // need different kernels. fill(work, position) adds what the kernels need to know of
  // ids[position]. What was sent before must have arrived.
  template <class Fill>
  void send(const LayerIds& ids, Fill&& fill) {
    works_.clear();
    filled_works_.clear();
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const std::size_t id = ids[p];
      if (layers_[id].size == 0) continue;
      filled_works_.push_back(layout_.works[id]);
      Work& work = filled_works_.back();
      fill(work, p);
      const bool settles_mask = reads_[id].settles_mask;
      const Group group{layers_[id].dtype, settles_mask, work.is_plain && !settles_mask};
      works_.push_back({id, p, filled_works_.size() - 1, group});
    }
    std::stable_sort(works_.begin(), works_.end(),
                     [](const SentWork& a, const SentWork& b) { return a.group < b.group; });
    launches_.clear();
    part_count_ = 0;
    for (std::size_t w = 0; w < works_.size(); ++w) {
      const SentWork& sent = works_[w];
      if (w == 0 || works_[w - 1].group != sent.group) {
        const auto [dtype, settles_mask, is_plain] = sent.group;
        launches_.push_back({dtype, settles_mask, is_plain, workspace_.works + w,
                             static_cast<int>(w), 0, 0, transfer_.stream()});
      }
      Launch& launch = launches_.back();
      Work& work = workspace_.sent_works[w];
      work = filled_works_[sent.filled];
      work.first_block = launch.blocks;
      work.first_part = static_cast<std::int64_t>(part_count_);
      ++launch.count;
      launch.blocks += spans_of(layers_[sent.id]);
      part_count_ += static_cast<std::size_t>(parts_of(spans_of(layers_[sent.id])));
    }
    transfer_.send(workspace_.works, workspace_.sent_works, works_.size());
  }

  // Puts a batch's works behind the first `count` to be sent, and returns how many these are then.
  std::size_t put_works(const Batch& batch, std::size_t count) {
    std::int64_t out = 0;
    std::int64_t spans = 0;
    for (const std::size_t id : batch.layers) {
      Work& work = workspace_.sent_works[count++];
      work = layout_.works[id];
      work.out = out;
      work.first_block = spans;
      work.first_span = spans;
      out += layers_[id].size;
      spans += spans_of(layers_[id]);
    }
    return count;
  }

  // As many bins as it pays for the host to look at: few where keys come along, and where stored
  // candidates can be narrowed without reading the weights again.
  static std::int64_t bins_for(Dtype dtype, bool has_room) {
    if (has_room) return Row::bins / 8;
    return stores_candidates(dtype) ? Row::bins / 2 : Row::bins;
  }

  // Sends the requests. Returns partitions with nothing in them yet, for the results.
  std::vector<Partition> send_requests(const LayerIds& ids,
                                       const std::vector<PartitionRequest>& requests,
                                       bool is_limited, const Rooms& rooms) {
    std::vector<Partition> found;
    found.reserve(ids.size());
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const std::int64_t bins = bins_for(layers_[ids[p]].dtype, rooms.of[p] > 0);
      found.emplace_back(requests[p].interval, std::max(bins, requests[p].least_bins));
    }
    send(ids, [&](Work& work, std::size_t position) {
      const PartitionRequest& request = requests[position];
      work.low = request.interval.low;
      work.high = request.interval.high;
      work.scale = request.scale;
      work.bin_bits = found[position].bin_bits;
      const std::int64_t size = layers_[ids[position]].size;
      work.share = is_limited ? candidate_share(size) : 0;
      work.out = rooms.first[position];
      work.room = rooms.of[position];
      Read& read = reads_[ids[position]];
      read.has_rows = true;
      read.row_interval = request.interval;
      read.row_bin_bits = work.bin_bits;
      read.most_sorted = 0;
      read.keys.clear();
    });
    return found;
  }

  // Whether positions are row-major indices.
  bool is_in_order(std::size_t id) const { return layout_.works[id].by_index.count == 0; }

  // Where the elements with a key are best counted in row-major order.
  TieCounts tie_counts(std::size_t id, std::uint64_t key) const {
    if (tie_bin(id, key) >= 0) return TieCounts::in_rows;
    const Stored& stored = reads_[id].stored;
    const KeyInterval& interval = stored.sides.interval;
    const bool are_stored = stored.is_complete && key >= interval.low && key < interval.high;
    return are_stored && is_in_order(id) ? TieCounts::of_candidates : TieCounts::of_weights;
  }

  // The bin in which a layer's rows count the elements with a key, span by span in row-major order;
  // -1 if there is none.
  int tie_bin(std::size_t id, std::uint64_t key) const {
    const Read& read = reads_[id];
    if (!read.has_rows || read.row_bin_bits > 0 || !is_in_order(id)) return -1;
    if (key < read.row_interval.low || key >= read.row_interval.high) return -1;
    return static_cast<int>(key - read.row_interval.low);
  }

  // --- what comes back ---

  void receive_rows() {
    for (Launch launch : launches_) {
      launch.blocks = 0;
      for (int w = 0; w < launch.count; ++w) {
        const std::size_t id = works_[static_cast<std::size_t>(launch.first + w)].id;
        launch.blocks += parts_of(spans_of(layers_[id]));
      }
      sum_rows(launch, workspace_.rows, workspace_.parts);
    }
    transfer_.receive(workspace_.results, workspace_.parts, part_count_);
    next_part_ = reinterpret_cast<const Row*>(workspace_.results);
  }

  // Adds the parts of the w-th work, for which `elements` elements were read, to its layer's
  // partition. Works must be added in their order.
  void add_rows(std::size_t w, std::int64_t elements, Partition& partition) {
    Sides found;
    std::int64_t inside = 0;
    for (std::int64_t p = parts_of(spans_of(layers_[works_[w].id])); p > 0; --p, ++next_part_) {
      const Row& part = *next_part_;
      found.below += part.below;
      inside += part.inside;
      found.above_sum.add(part.above_sum);
      for (std::size_t b = 0; b < partition.bins.size(); ++b) {
        if (part.counts[b] > 0) add_bin(part, b, key_shift(partition.bin_bits), partition.bins[b]);
      }
    }
    found.above = elements - found.below - inside;
    partition.sides.add(found);
  }

  static void add_bin(const Row& row, std::size_t b, int shift, Bin& bin) {
    bin.widen(std::uint64_t{row.firsts[b]} << shift,
              ((std::uint64_t{row.lasts[b]} + 1) << shift) - 1);
    bin.count += row.counts[b];
    bin.sum += row.sums[b];
  }

  static LogHistogram histogram_of(Dtype dtype, const DeviceHistogram& received) {
    LogHistogram histogram;
    histogram.drawn = received.drawn;
    histogram.zeros = received.zeros;
    histogram.first = received.first;
    histogram.shift = with_format(dtype, [](auto format) {
      return histogram_shift<decltype(format)>(DeviceHistogram::bits_per_octave);
    });
    int size = DeviceHistogram::bins;
    while (size > 0 && received.counts[size - 1] == 0) --size;
    histogram.counts.assign(received.counts, received.counts + size);
    return histogram;
  }

  // In the order of the ids.
  std::vector<DeviceStats> find_all_stats(const LayerIds& ids) {
    const DeviceGuard guard(device_);
    constexpr DeviceStats nothing{0, no_index, 0, no_index};
    send(ids, [](Work&, std::size_t) {});
    std::fill_n(workspace_.sent_stats, works_.size(), nothing);
    transfer_.send(workspace_.stats, workspace_.sent_stats, works_.size());
    for (const Launch& launch : launches_) find_stats(launch, workspace_.stats);
    transfer_.receive(workspace_.results, workspace_.stats, works_.size());
    transfer_.wait();
    const auto* received = reinterpret_cast<const DeviceStats*>(workspace_.results);
    std::vector<DeviceStats> all(ids.size(), nothing);
    for (std::size_t w = 0; w < works_.size(); ++w) all[works_[w].position] = received[w];
    return all;
  }

  // --- candidates ---

  // The store only ever hands out memory behind what is in use, so it is emptied once no layer's
  // candidates are needed any more.
  void forget_unused_candidates() {
    const auto is_stored = [](const Read& read) { return read.stored.is_complete; };
    if (std::any_of(reads_.begin(), reads_.end(), is_stored)) return;
    transfer_.clear(workspace_.store.used_bytes, 1);
    transfer_.clear(workspace_.store.used_segments, 1);
  }

  void collect_batch(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                     const KeySink& sink) {
    if (ids.empty()) return;
    std::int64_t count = 0;
    std::vector<std::int64_t> firsts(ids.size());  // where the keys of a layer begin
    send(ids, [&](Work& work, std::size_t position) {
      work.low = requests[position].interval.low;
      work.high = requests[position].interval.high;
      work.out = count;
      work.room = requests[position].count;
      firsts[position] = count;
      count += requests[position].count;
    });
    queue_collect();
    transfer_.receive(workspace_.results, workspace_.collected, static_cast<std::size_t>(count));
    transfer_.wait();
    const auto* keys = reinterpret_cast<const std::uint64_t*>(workspace_.results);
    for (const SentWork& work : works_) {
      const std::uint64_t* first = keys + firsts[work.position];
      sink(work.id, Keys(first, first + requests[work.position].count));
    }
  }

  // Collects the candidates inside the works' intervals, for each as many as it has room for.
  void queue_collect() {
    transfer_.clear(workspace_.found, works_.size());
    for (const Launch& launch : launches_) {
      collect_candidates(launch, workspace_.store, workspace_.found, workspace_.collected);
    }
  }

  // Receives keys beside the rows.
  void receive_keys(const Rooms& rooms) {
    queue_collect();
    const std::size_t beside = part_count_ * sizeof(Row) + works_.size() * sizeof(std::uint32_t);
    received_keys_ = workspace_.results + rounded(beside);
    transfer_.receive(received_keys_, workspace_.collected, static_cast<std::size_t>(rooms.total));
  }

  // Keeps the received keys of the w-th work if they are all `inside` of its interval.
  void keep_keys(std::size_t w, std::int64_t inside, const Rooms& rooms) {
    Read& read = reads_[works_[w].id];
    const std::size_t position = works_[w].position;
    read.inside = inside;
    read.most_sorted = most_few;
    if (inside > rooms.of[position]) return;
    read.most_sorted = inside;
    const auto* keys = reinterpret_cast<const std::uint64_t*>(received_keys_);
    read.keys.assign(keys + rooms.first[position], keys + rooms.first[position] + inside);
  }

  // Calls body(key, offset) for the weights of a layer, from a copy of it in the host. Offsets are
  // those that `steps`, as strides, lead to.
  template <class Body>
  void for_each_weight(std::size_t id, const Strides& steps, Body&& body) {
    const Layer& layer = layers_[id];
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
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* data = reinterpret_cast<const typename Format::Storage*>(copy.data()) - first;
      const StridedWalk<2, 0> walk(layer.shape, {&layer.strides, &steps}, Order::memory);
      walk.runs(0, layer.size, [&](auto, const auto& offsets, std::int64_t length) {
        for (std::int64_t j = 0; j < length; ++j) {
          const auto key = Format::key(data[offsets[0] + j * walk.step()[0]]);
          body(std::uint64_t{key}, offsets[1] + j * walk.step()[1]);
        }
      });
    });
  }

  // All keys of a layer inside an interval.
  Keys keys_of_weights(std::size_t id, const KeyInterval& interval) {
    Keys keys;
    for_each_weight(id, layers_[id].strides, [&](std::uint64_t key, std::int64_t) {
      if (key >= interval.low && key < interval.high) keys.push_back(key);
    });
    return keys;
  }

  const std::vector<Layer>& layers_;
  const std::vector<Layer>& targets_;
  const int device_;
  const Workspace workspace_;
  std::byte* const beyond_workspace_;  // for scores
  const Layout layout_;
  std::vector<Read> reads_;
  bool wants_masks_ = false;     // whether the commit writes masks
  std::vector<GroupBox> boxes_;  // that the commit zeroes in place of launches

  // About the works that were sent last:
  std::vector<Work> filled_works_;
  std::vector<SentWork> works_;
  std::vector<Launch> launches_;
  std::size_t part_count_ = 0;
  const Row* next_part_ = nullptr;
  std::byte* received_keys_ = nullptr;

  Transfer transfer_;  // destroyed first, as it waits for copies that still use the others
};

// None without a driver, or with one that is too old.
int device_count() {
  int count = 0;
  const bool is_known = cudaGetDeviceCount(&count) == cudaSuccess;
  cudaGetLastError();
  return is_known ? count : 0;
}

// Stands for all kernels: they are compiled for the same architectures.
__global__ void any_kernel() {}

}  // namespace

bool built() { return true; }

bool usable() { return device_count() > 0; }

bool runs_on(int device) {
  if (device < 0 || device >= device_count()) return false;
  const DeviceGuard guard(device);
  return has_code(any_kernel);
}

Needs needs(const std::vector<Layer>& layers, int device) {
  return Workspace(layers, device, nullptr, nullptr).needs;
}

Needs needs_of_scores(const std::vector<Layer>& layers, int device) {
  const DeviceGuard guard(device);
  Needs needs = cuda::needs(layers, device);
  LayerIds there;
  for (std::size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].device == device) there.push_back(i);
  }
  std::int64_t most = 0;
  for (const Batch& batch : batches(layers, there)) most = std::max(most, score_bytes(batch));
  needs.bytes += most;
  return needs;
}

std::unique_ptr<Backend> gpu_backend(const Job& job, const Gpu& gpu) {
  return std::make_unique<GpuBackend>(job, gpu);
}

}  // namespace lampfast::cuda
