// The GPU backend: what the stages ask for becomes launches on one stream, and the host waits only
// where a stage needs the results to go on.
#include <algorithm>
#include <limits>
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
    transfer_.send(workspace_.axes, layout_.axes);
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

  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         const MaskSink& masks, StoreLimit limit) override {
    const DeviceGuard guard(device_);
    const bool is_limited = limit == StoreLimit::budget;
    const bool writes_masks = is_limited && masks.wants_masks();
    for (const std::size_t id : ids) reads_[id] = {};
    forget_unused_candidates();
    std::vector<Partition> found = send_requests(ids, requests, is_limited);
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
      const auto [id, position] = works_[w];
      add_rows(w, layers_[id].size, found[position]);
      reads_[id].stored.is_complete = stores_candidates(layers_[id].dtype) && incomplete[w] == 0;
    }
    std::vector<PartitionResult> results;
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const std::size_t id = ids[p];
      Read& read = reads_[id];
      read.holds_all_weights = !is_limited;
      read.stored.sides = found[p].sides;
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
    std::vector<Partition> found = send_requests(ids, requests, true);
    for (const Launch& launch : launches_) {
      partition_candidates(launch, workspace_.store, workspace_.rows);
    }
    receive_rows();
    transfer_.wait();
    for (std::size_t w = 0; w < works_.size(); ++w) {
      const auto [id, position] = works_[w];
      const Sides& read = reads_[id].stored.sides;
      found[position].sides.add(read);
      add_rows(w, layers_[id].size - read.below - read.above, found[position]);
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
      if (reads_[ids[p]].holds_all_weights) {
        sink(ids[p], keys_of_weights(ids[p], requests[p].interval));
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
    bool has_ties = false;
    bool counts_ties = false;
    send(changed, [&](Work& work, std::size_t position) {
      const std::size_t id = changed[position];
      const LayerThreshold& threshold = thresholds[id];
      work.low = threshold.key;
      work.ties = threshold.ties;
      work.tie_bin = tie_bin(id, threshold.key);
      has_ties = has_ties || threshold.ties > 0;
      counts_ties = counts_ties || (threshold.ties > 0 && work.tie_bin < 0);
    });
    for (const Launch& launch : launches_) {
      if (counts_ties) count_ties(launch, workspace_.tie_counts);
      if (has_ties) {
        find_ties(launch, workspace_.tie_counts, workspace_.rows, workspace_.first_kept);
      }
      load_commit(launch.dtype);
    }
    transfer_.wait();
  }

  void commit() override {
    const DeviceGuard guard(device_);
    for (const Launch& launch : launches_) {
      if (launch.settles_mask) {
        settle_masks(launch, workspace_.store, workspace_.first_kept);
      } else {
        (wants_masks_ ? mask : zero)(launch, workspace_.first_kept);
      }
    }
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
    transfer_.clear(workspace_.not_finite, 1);
    for (const Batch& batch : batches(layers_, ids)) {
      std::int64_t out = 0;
      std::int64_t span = 0;
      send(batch.layers, [&](Work& work, std::size_t position) {
        const Layer& layer = layers_[batch.layers[position]];
        work.out = out;
        work.first_span = span;
        out += layer.size;
        span += spans_of(layer);
      });
      score_batch(batch, workspace_.works, beyond_workspace_, workspace_.not_finite,
                  transfer_.stream());
      transfer_.wait();  // the works of the next batch overwrite these
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

  // What the last read of a layer has left.
  struct Read {
    Stored stored;                   // what of the layer is in the workspace's store
    bool holds_all_weights = false;  // it was read without a limit: keys come from the weights
    bool settles_mask = false;       // the commit completes its mask from the candidates
    // Whether the workspace has the rows of a read, and for which interval:
    bool has_rows = false;
    KeyInterval row_interval{};
    int row_bin_bits = 0;
  };

  // A layer's work among those that were last sent.
  struct SentWork {
    std::size_t id;
    std::size_t position;  // among the ids that were asked for
  };

  // Whether partition_weights can write a layer's mask.
  bool can_write_mask(std::size_t id) const {
    return layout_.works[id].dense && stores_candidates(layers_[id].dtype);
  }

  // --- to the GPU ---

  // Sends the works of the layers, and prepares one launch for each dtype, or two if only some of
  // its layers have masks to settle. fill(work, position) adds what the kernels need to know of
  // ids[position]. What was sent before must have arrived.
  template <class Fill>
  void send(const LayerIds& ids, Fill&& fill) {
    works_.clear();
    for (std::size_t p = 0; p < ids.size(); ++p) {
      if (layers_[ids[p]].size > 0) works_.push_back({ids[p], p});
    }
    const auto group = [&](const SentWork& work) {
      return std::pair{layers_[work.id].dtype, reads_[work.id].settles_mask};
    };
    std::stable_sort(works_.begin(), works_.end(),
                     [&](const SentWork& a, const SentWork& b) { return group(a) < group(b); });
    std::vector<Work>& works = sent_works_;
    works.clear();
    works.reserve(works_.size());
    launches_.clear();
    part_count_ = 0;
    for (const SentWork& sent : works_) {
      const std::pair<Dtype, bool> sent_group = group(sent);
      if (launches_.empty() ||
          std::pair{launches_.back().dtype, launches_.back().settles_mask} != sent_group) {
        const auto first = static_cast<int>(works.size());
        launches_.push_back({sent_group.first, sent_group.second, workspace_.works + first, first,
                             0, 0, transfer_.stream()});
      }
      Launch& launch = launches_.back();
      Work work = layout_.works[sent.id];
      work.first_block = launch.blocks;
      work.first_part = static_cast<std::int64_t>(part_count_);
      fill(work, sent.position);
      works.push_back(work);
      ++launch.count;
      launch.blocks += spans_of(layers_[sent.id]);
      part_count_ += static_cast<std::size_t>(parts_of(spans_of(layers_[sent.id])));
    }
    transfer_.send(workspace_.works, works);
  }

  // Sends the requests. Returns partitions with nothing in them yet, for the results.
  std::vector<Partition> send_requests(const LayerIds& ids,
                                       const std::vector<PartitionRequest>& requests,
                                       bool is_limited) {
    std::vector<Partition> found;
    found.reserve(ids.size());
    for (const PartitionRequest& request : requests)
      found.emplace_back(request.interval, Row::bins);
    send(ids, [&](Work& work, std::size_t position) {
      const PartitionRequest& request = requests[position];
      work.low = request.interval.low;
      work.high = request.interval.high;
      work.scale = request.scale;
      work.bin_bits = found[position].bin_bits;
      const std::int64_t size = layers_[ids[position]].size;
      work.share = is_limited ? candidate_share(size) : 0;
      Read& read = reads_[ids[position]];
      read.has_rows = true;
      read.row_interval = request.interval;
      read.row_bin_bits = work.bin_bits;
    });
    return found;
  }

  // The bin in which a layer's rows count the elements with a key, span by span in row-major order;
  // -1 if there is none.
  int tie_bin(std::size_t id, std::uint64_t key) const {
    const Read& read = reads_[id];
    const bool in_order = layout_.works[id].by_index.count == 0;
    if (!read.has_rows || read.row_bin_bits > 0 || !in_order) return -1;
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
    sent_stats_.assign(works_.size(), nothing);
    transfer_.send(workspace_.stats, sent_stats_);
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
    std::vector<std::int64_t> firsts;  // by work: where its keys begin
    send(ids, [&](Work& work, std::size_t position) {
      work.low = requests[position].interval.low;
      work.high = requests[position].interval.high;
      work.out = count;
      firsts.push_back(count);
      count += requests[position].count;
    });
    transfer_.clear(workspace_.found, works_.size());
    for (const Launch& launch : launches_) {
      collect_candidates(launch, workspace_.store, workspace_.found, workspace_.collected);
    }
    transfer_.receive(workspace_.results, workspace_.collected, static_cast<std::size_t>(count));
    transfer_.wait();
    const auto* keys = reinterpret_cast<const std::uint64_t*>(workspace_.results);
    for (std::size_t w = 0; w < works_.size(); ++w) {
      const std::uint64_t* first = keys + firsts[w];
      sink(works_[w].id, Keys(first, first + requests[works_[w].position].count));
    }
  }

  // All keys of a layer inside an interval, from a copy of the layer in the host.
  Keys keys_of_weights(std::size_t id, const KeyInterval& interval) {
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
    Keys keys;
    with_format(layer.dtype, [&](auto format) {
      using Format = decltype(format);
      const auto* data = reinterpret_cast<const typename Format::Storage*>(copy.data()) - first;
      const StridedWalk<1, 0> walk(layer.shape, {&layer.strides}, Order::memory);
      walk.runs(0, layer.size, [&](auto, const auto& offsets, std::int64_t length) {
        for (std::int64_t j = 0; j < length; ++j) {
          const auto key = Format::key(data[offsets[0] + j * walk.step()[0]]);
          if (key >= interval.low && key < interval.high) keys.push_back(key);
        }
      });
    });
    return keys;
  }

  const std::vector<Layer>& layers_;
  const int device_;
  const Workspace workspace_;
  std::byte* const beyond_workspace_;  // for scores
  const Layout layout_;
  std::vector<Read> reads_;
  bool wants_masks_ = false;  // whether the commit writes masks

  // What was sent last, and must not change until the next wait:
  std::vector<Work> sent_works_;
  std::vector<DeviceStats> sent_stats_;

  // About the works that were sent last:
  std::vector<SentWork> works_;
  std::vector<Launch> launches_;
  std::size_t part_count_ = 0;
  const Row* next_part_ = nullptr;

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
