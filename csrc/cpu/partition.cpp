// Partition in host memory: chunks of all layers are read at once, and what each finds is merged
// under a lock.
#include <algorithm>
#include <atomic>
#include <limits>
#include <mutex>
#include <utility>

#include "core/candidate_budget.h"
#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/test_sizes.h"
#include "cpu/chunks.h"
#include "cpu/classify.h"
#include "cpu/host_backend.h"
#include "cpu/large_pages.h"

namespace lampfast::cpu {
namespace {

// Every layer has its bins, and the intervals that they become (select/rank_bounds.h), at the same
// time: they take at most about 2% of the weights' bytes, and a little more for the smallest
// layers.
constexpr std::int64_t bytes_per_bin = test_sizes ? 1 << 6 : 1 << 12;
constexpr std::int64_t least_bins = 4;
constexpr std::int64_t most_bins = test_sizes ? 8 : 512;
// Once the threshold is bounded, rank_bounds.h keeps only the few intervals near it, so that
// smaller layers can have more bins.
constexpr std::int64_t least_bins_of_candidates = test_sizes ? 4 : 64;

// What a layer costs beside its candidates, as a number of weights that are read in the same time.
constexpr std::int64_t weights_per_layer = 1 << 11;

// How many candidates one task narrows, and up to a segment more.
constexpr std::int64_t candidates_at_a_time = test_sizes ? 24 : 1 << 14;

std::int64_t bin_count(const Layer& layer, std::int64_t least) {
  return std::clamp(layer.size * item_size(layer.stored()) / bytes_per_bin, least, most_bins);
}

// What one task finds.
class TaskPartition {
 public:
  // Has the bins of `partition`, into which it is merged in the end.
  TaskPartition(const PartitionRequest& request, const Partition& partition)
      : request_(request), bin_count_(partition.bins.size()), bin_bits_(partition.bin_bits) {
    // If every bin is a single key, the sums follow from the counts. As equal keys often follow
    // each other, each key then has several counters: with one, every increment would wait for the
    // one before it.
    if (bin_bits_ == 0) {
      counts_.resize(bin_count_ * counters_per_key);
    } else {
      counts_.resize(bin_count_);
      sums_.resize(bin_count_);
      if (request.track_min_max) min_max_.resize(bin_count_);
    }
  }

  // Adds elements, and calls sink(keys, count) with those inside the interval. Writes their mask
  // bytes (kernels.h) to `kept`, unless that is null.
  template <class Format, class Sink>
  void read(Dtype dtype, const typename Format::Storage* data, std::int64_t length,
            std::uint8_t* kept, Sink&& sink) {
    using Key = typename Format::Storage;
    classify(dtype, data, length, request_.interval, request_.scale, kept,
             [&](const Classified& block, const Key* inside) { add<Format>(block, inside, sink); });
  }

  // The same for codes that share a scale.
  template <class Sink>
  void read_codes(Dtype dtype, const std::uint8_t* codes, std::int64_t length, double scale,
                  std::uint8_t* kept, Sink&& sink) {
    const Kernels& kernels = kernels_for(dtype);
    const KeyInterval interval{least_code(dtype, scale, request_.interval.low),
                               least_code(dtype, scale, request_.interval.high)};
    alignas(64) std::uint64_t products[classify_block];
    classify(dtype, codes, length, interval, 1.0, kept,
             [&](Classified block, const std::uint8_t* inside) {
               block.above_sum *= scale * scale;
               kernels.magnitudes(inside, block.inside, products);
               for (int i = 0; i < block.inside; ++i) {
                 products[i] = bit_cast<std::uint64_t>(bit_cast<double>(products[i]) * scale);
               }
               add<Float64>(block, products, sink);
             });
  }

  void merge_into(Partition& partition) const {
    partition.sides.add(sides_);
    for (std::size_t i = 0; i < bin_count_; ++i) {
      Bin& bin = partition.bins[i];
      for (std::size_t c = i; c < counts_.size(); c += bin_count_) bin.count += counts_[c];
      if (sums_.empty() || counts_[i] == 0) continue;
      bin.sum += sums_[i];
      if (!min_max_.empty()) bin.widen(min_max_[i].smallest, min_max_[i].largest);
    }
  }

 private:
  static constexpr std::size_t counters_per_key = 4;

  // Relative to the bin's first key.
  struct MinMax {
    std::uint64_t smallest = ~std::uint64_t{0};
    std::uint64_t largest = 0;

    void add(std::uint64_t key) {
      smallest = std::min(smallest, key);
      largest = std::max(largest, key);
    }
  };

  template <class Format, class Sink>
  void add(const Classified& block, const typename Format::Storage* inside, Sink&& sink) {
    sides_.below += block.below;
    sides_.above += block.above;
    sides_.above_sum.add(block.above_sum);
    if (block.inside == 0) return;
    if (bin_bits_ == 0) {
      count_keys(inside, block.inside);
    } else {
      fill_bins<Format>(inside, block.inside);
    }
    sink(inside, static_cast<std::int64_t>(block.inside));
  }

  template <class Key>
  void count_keys(const Key* keys, int count) {
    const auto low = static_cast<Key>(request_.interval.low);
    std::uint32_t* counts = counts_.data();
    int i = 0;
    for (; i + 4 <= count; i += 4) {
      ++counts[static_cast<Key>(keys[i] - low)];
      ++counts[static_cast<Key>(keys[i + 1] - low) + bin_count_];
      ++counts[static_cast<Key>(keys[i + 2] - low) + 2 * bin_count_];
      ++counts[static_cast<Key>(keys[i + 3] - low) + 3 * bin_count_];
    }
    for (; i < count; ++i) ++counts[static_cast<Key>(keys[i] - low)];
  }

  template <class Format>
  void add_to_bin(typename Format::Storage key, int count) {
    const std::uint64_t offset = key - request_.interval.low;
    const std::uint64_t within = offset & ((std::uint64_t{1} << bin_bits_) - 1);
    const auto bin = static_cast<std::size_t>(offset >> bin_bits_);
    counts_[bin] += static_cast<std::uint32_t>(count);
    sums_[bin] += count * scaled_square<Format>(key, request_.scale);
    if (!min_max_.empty()) min_max_[bin].add(within);
  }

  template <class Format>
  void fill_bins(const typename Format::Storage* keys, int count) {
    // Where there are many candidates, most are ties of a few keys: these are added at once.
    constexpr int many = 64;
    constexpr int most_keys = 4;
    typename Format::Storage others[classify_block];
    for (int key = 0; key < most_keys && count > many; ++key) {
      const auto tied = keys[0];
      int equal = 0;
      for (int i = 0; i < count; ++i) equal += keys[i] == tied ? 1 : 0;
      if (equal < count / 4) break;
      add_to_bin<Format>(tied, equal);
      if (equal == count) return;
      int left = 0;
      for (int i = 0; i < count; ++i) {
        others[left] = keys[i];
        left += keys[i] == tied ? 0 : 1;
      }
      keys = others;
      count = left;
    }
    fill_bins_one_by_one<Format>(keys, count);
  }

  template <class Format>
  void fill_bins_one_by_one(const typename Format::Storage* keys, int count) {
    const auto low = static_cast<typename Format::Storage>(request_.interval.low);
    const int bits = bin_bits_;
    const double scale = request_.scale;
    std::uint32_t* counts = counts_.data();
    double* sums = sums_.data();
    for (int i = 0; i < count; ++i) {
      const auto bin = static_cast<std::size_t>((keys[i] - low) >> bits);
      ++counts[bin];
      sums[bin] += scaled_square<Format>(keys[i], scale);
    }
    if (min_max_.empty()) return;
    const std::uint64_t bin_mask = (std::uint64_t{1} << bits) - 1;
    for (int i = 0; i < count; ++i) {
      const std::uint64_t offset = keys[i] - low;
      min_max_[offset >> bits].add(offset & bin_mask);
    }
  }

  const PartitionRequest& request_;
  std::size_t bin_count_;
  int bin_bits_;
  Sides sides_;
  std::vector<std::uint32_t> counts_;
  std::vector<double> sums_;
  std::vector<MinMax> min_max_;
};

static_assert(classify_block <= error_bounds::most_plain_terms);
static_assert(chunk_size <= error_bounds::most_bin_terms);
static_assert(candidates_at_a_time + slab_bytes <= error_bounds::most_bin_terms);
// Each chunk makes one partial sum of a bin; of the candidates, each full slab does, and each
// chunk's rest. Candidates are at most a layer's share, and what the chunks hold that are read
// meanwhile.
static_assert(test_sizes || 2 * error_bounds::most_layer_elements / chunk_size +
                                    candidate_share(error_bounds::most_layer_elements) /
                                        (slab_bytes / std::int64_t{sizeof(double)}) +
                                    (std::int64_t{1} << 16) <=
                                error_bounds::most_bin_merges);
static_assert(chunk_size < std::numeric_limits<std::uint32_t>::max());  // the counters' range

// One read of the weights of some layers.
class WeightsReader {
 public:
  // In the order of the ids:
  std::vector<PartitionResult> results;
  std::vector<std::vector<CandidateSegment>> candidates;
  std::vector<std::uint8_t*> kept;  // the mask that is written during the read, or null

  WeightsReader(const std::vector<Layer>& layers, const LayerIds& ids,
                const std::vector<PartitionRequest>& requests, const MaskSink& masks,
                const std::shared_ptr<CandidateBudget>& budget, int threads)
      : results(ids.size()),
        candidates(ids.size()),
        kept(ids.size()),
        layers_(layers),
        requests_(requests),
        budget_(budget),
        writers_(static_cast<std::size_t>(threads), CandidateWriter(budget)),
        inside_(ids.size()),
        is_incomplete_(ids.size()) {
    for (std::size_t p = 0; p < ids.size(); ++p) {
      const Layer& layer = layers[ids[p]];
      const std::int64_t bins = bin_count(layer, std::max(least_bins, requests[p].least_bins));
      results[p].found = Partition(requests[p].interval, bins);
      if (!masks.takes(ids[p], layer)) continue;
      kept[p] = masks.bytes(ids[p]);
      use_large_pages(kept[p], static_cast<std::size_t>(layer.size));
    }
  }

  void read(const Chunk& chunk, int worker) {
    const Layer& layer = layers_[chunk.layer];
    const std::size_t p = chunk.position;
    TaskPartition found_here(requests_[p], results[p].found);
    std::vector<CandidateSegment> segments;
    bool is_complete = !is_incomplete_[p] && inside_[p] <= budget_->share(layer.size);
    with_format(layer.dtype, [&](auto format) {
      is_complete =
          read_elements<decltype(format)>(layer, chunk, worker, is_complete, found_here, segments);
    });
    // No other task works on a layer of one chunk, which needs no lock.
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    if (chunk.end - chunk.begin < layer.size) lock.lock();
    found_here.merge_into(results[p].found);
    if (!is_complete) {
      // Some of a layer's candidates are useless without the others: free their memory for other
      // layers.
      is_incomplete_[p] = true;
      candidates[p].clear();
    }
    if (is_incomplete_[p]) return;
    if (candidates[p].empty()) {
      candidates[p] = std::move(segments);
    } else {
      candidates[p].insert(candidates[p].end(), segments.begin(), segments.end());
    }
  }

  void finish() {
    for (std::size_t p = 0; p < results.size(); ++p) {
      results[p].is_stored = !is_incomplete_[p];
      if (candidates[p].size() < 2) continue;  // spares small layers the sort's buffer
      std::stable_sort(candidates[p].begin(), candidates[p].end(),
                       [](const CandidateSegment& a, const CandidateSegment& b) {
                         return a.chunk_begin < b.chunk_begin;
                       });
    }
  }

 private:
  // Whether all of the chunk's candidates were stored.
  template <class Format>
  bool read_elements(const Layer& layer, const Chunk& chunk, int worker, bool is_complete,
                     TaskPartition& found_here, std::vector<CandidateSegment>& segments) {
    using Key = typename Format::Storage;
    CandidateWriter& writer = writers_[static_cast<std::size_t>(worker)];
    std::uint8_t* to = kept[chunk.position];
    if (to != nullptr) to += chunk.begin;
    std::int64_t inside = 0;
    const auto store_keys = [&](const Key* keys, std::int64_t count) {
      inside += count;
      is_complete = is_complete && writer.append(keys, count, chunk.begin, segments);
    };
    const auto advance = [&](std::int64_t length) { to = to == nullptr ? nullptr : to + length; };
    if constexpr (std::is_same_v<Format, Float64>) {
      if (compares_codes(layer)) {
        for_each_code_stretch(
            layer, chunk, [&](const std::uint8_t* codes, std::int64_t length, double scale) {
              found_here.read_codes(layer.scales->codes, codes, length, scale, to, store_keys);
              advance(length);
            });
        inside_[chunk.position] += inside;
        return is_complete;
      }
    }
    for_each_stretch<Key>(layer, chunk, [&](const Key* elements, std::int64_t length) {
      found_here.read<Format>(layer.dtype, elements, length, to, store_keys);
      advance(length);
    });
    inside_[chunk.position] += inside;
    return is_complete;
  }

  const std::vector<Layer>& layers_;
  const std::vector<PartitionRequest>& requests_;
  const std::shared_ptr<CandidateBudget>& budget_;
  std::vector<CandidateWriter> writers_;  // by thread
  std::vector<std::atomic<std::int64_t>> inside_;
  std::vector<std::atomic<bool>> is_incomplete_;
  std::mutex mutex_;
};

}  // namespace

std::int64_t HostBackend::most_bins() const { return cpu::most_bins; }

std::vector<PartitionResult> HostBackend::partition(const LayerIds& ids,
                                                    const std::vector<PartitionRequest>& requests,
                                                    const MaskSink& masks, StoreLimit limit) {
  const auto budget = limit == StoreLimit::budget
                          ? budget_
                          : std::make_shared<CandidateBudget>(CandidateBudget::no_limit);
  for (const std::size_t id : ids) {  // returns the memory of copies and candidates
    drawn_[id] = {};
    reads_[id] = {};
  }
  WeightsReader reader(layers_, ids, requests, masks, budget, pool_.size());
  for_each_chunk(whole(layers_, ids), pool_,
                 [&](const Chunk& chunk, int worker) { reader.read(chunk, worker); });
  reader.finish();
  for (std::size_t p = 0; p < ids.size(); ++p) {
    const PartitionResult& result = reader.results[p];
    reads_[ids[p]] = {{result.found.sides, result.is_stored, reader.kept[p] != nullptr},
                      std::move(reader.candidates[p])};
  }
  return std::move(reader.results);
}

std::vector<Partition> HostBackend::narrow(const LayerIds& ids,
                                           const std::vector<PartitionRequest>& requests) {
  // Segments of one layer that are read together, as many are short.
  struct Task {
    std::size_t position;  // among the ids
    const CandidateSegment* begin;
    const CandidateSegment* end;
  };
  std::vector<Partition> found;
  found.reserve(ids.size());
  std::vector<Task> tasks;
  std::int64_t total = static_cast<std::int64_t>(ids.size()) * weights_per_layer;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    const Read& read = reads_[ids[p]];
    const std::int64_t least = std::max(least_bins_of_candidates, requests[p].least_bins);
    found.emplace_back(requests[p].interval, bin_count(layers_[ids[p]], least));
    found[p].sides.add(read.stored.sides);
    std::int64_t left = 0;  // that the last task has room for
    for (const CandidateSegment& segment : read.candidates) {
      if (left <= 0) {
        tasks.push_back({p, &segment, &segment});
        left = candidates_at_a_time;
      }
      tasks.back().end = &segment + 1;
      left -= segment.count;
      total += segment.count;
    }
  }
  std::mutex mutex;
  pool_.for_each(static_cast<std::int64_t>(tasks.size()), total, [&](std::int64_t t, int) {
    const auto [p, begin, end] = tasks[static_cast<std::size_t>(t)];
    const Dtype dtype = layers_[ids[p]].dtype;
    TaskPartition found_here(requests[p], found[p]);
    with_format(dtype, [&, first = begin, last = end](auto format) {
      using Format = decltype(format);
      for (const CandidateSegment* segment = first; segment != last; ++segment) {
        found_here.read<Format>(dtype,
                                reinterpret_cast<const typename Format::Storage*>(segment->keys),
                                segment->count, nullptr, [](auto, auto) {});
      }
    });
    std::unique_lock<std::mutex> lock(mutex, std::defer_lock);
    if (end - begin < static_cast<std::ptrdiff_t>(reads_[ids[p]].candidates.size())) lock.lock();
    found_here.merge_into(found[p]);
  });
  return found;
}

void HostBackend::collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                          const KeySink& sink) {
  std::int64_t total = static_cast<std::int64_t>(ids.size()) * weights_per_layer;
  for (const std::size_t id : ids) {
    for (const CandidateSegment& segment : reads_[id].candidates) total += segment.count;
  }
  pool_.for_each(static_cast<std::int64_t>(ids.size()), total, [&](std::int64_t task, int) {
    const auto p = static_cast<std::size_t>(task);
    const Dtype dtype = layers_[ids[p]].dtype;
    std::vector<std::uint64_t> keys;
    keys.reserve(static_cast<std::size_t>(requests[p].count));
    with_format(dtype, [&](auto format) {
      using Key = typename decltype(format)::Storage;
      for (const CandidateSegment& segment : reads_[ids[p]].candidates) {
        classify(dtype, reinterpret_cast<const Key*>(segment.keys), segment.count,
                 requests[p].interval, 1.0, nullptr,
                 [&](const Classified& block, const Key* inside) {
                   keys.insert(keys.end(), inside, inside + block.inside);
                 });
      }
    });
    sink(ids[p], std::move(keys));
  });
}

}  // namespace lampfast::cpu
