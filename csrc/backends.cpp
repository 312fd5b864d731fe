// Divides each request among the backends and merges their answers.
#include "backends.h"

#include <algorithm>
#include <exception>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>

#include "core/check_layers.h"
#include "cpu/host_backend.h"

namespace lampfast {
namespace {

const cuda::Gpu& gpu_of(const Machine& machine, int device) {
  for (const cuda::Gpu& gpu : machine.gpus) {
    if (gpu.device == device) return gpu;
  }
  throw std::invalid_argument("a layer lives on device " + std::to_string(device) +
                              ", which the call was not lent");
}

// Partitions the stored candidates of the layers whose requests say so, and the weights of others.
std::vector<PartitionResult> partition_in(Backend& backend, const LayerIds& ids,
                                          const std::vector<PartitionRequest>& requests,
                                          const MaskSink& masks, StoreLimit limit) {
  std::vector<std::size_t> stored;
  std::vector<std::size_t> others;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    (requests[p].of_candidates ? stored : others).push_back(p);
  }
  if (stored.empty()) return backend.partition(ids, requests, masks, limit);
  std::vector<Partition> narrowed = backend.narrow(pick(ids, stored), pick(requests, stored));
  std::vector<PartitionResult> read;
  if (!others.empty()) {
    read = backend.partition(pick(ids, others), pick(requests, others), masks, limit);
  }
  std::vector<PartitionResult> results(ids.size());
  for (std::size_t s = 0; s < stored.size(); ++s) {
    results[stored[s]] = {std::move(narrowed[s]), true};
  }
  for (std::size_t r = 0; r < others.size(); ++r) results[others[r]] = std::move(read[r]);
  return results;
}

std::vector<KeysInside> keys_in(Backend& backend, const LayerIds& ids,
                                const std::vector<PartitionRequest>& requests,
                                const MaskSink& masks) {
  std::vector<KeysInside> results;
  std::vector<KeyRequest> wanted;
  for (const PartitionResult& read :
       partition_in(backend, ids, requests, masks, StoreLimit::none)) {
    results.push_back({read.found.sides, {}});
    wanted.push_back({read.found.sides.interval, read.found.inside()});
  }
  backend.collect(ids, wanted, [&](std::size_t id, std::vector<std::uint64_t>&& keys) {
    const auto position = std::lower_bound(ids.begin(), ids.end(), id) - ids.begin();
    results[static_cast<std::size_t>(position)].keys = std::move(keys);
  });
  return results;
}

// No partition has zeros inside its interval.
std::vector<std::uint64_t> smallest_in(Backend& backend, const LayerIds& ids,
                                       std::vector<PartitionRequest> requests,
                                       const MaskSink& masks) {
  std::vector<bool> holds_zero;
  for (PartitionRequest& request : requests) {
    holds_zero.push_back(request.interval.low == 0);
    request.interval.low = std::max<std::uint64_t>(request.interval.low, 1);
  }
  std::vector<std::uint64_t> smallest;
  for (const PartitionResult& result :
       partition_in(backend, ids, requests, masks, StoreLimit::budget)) {
    const bool is_zero = holds_zero[smallest.size()] && result.found.sides.below > 0;
    smallest.push_back(is_zero ? 0 : result.found.smallest());
  }
  return smallest;
}

// Runs body(task) for all tasks concurrently: the first on this thread, every other on a thread of
// its own or, if the system has none left, on this one afterwards. Rethrows the exception of the
// first task, in their order, that failed.
template <class Body>
void run_together(std::size_t tasks, Body&& body) {
  std::vector<std::exception_ptr> failures(tasks);
  std::vector<char> is_done(tasks, 0);
  const auto run = [&](std::size_t task) {
    const cpu::FloatEnvironment environment;
    is_done[task] = 1;
    try {
      body(task);
    } catch (...) {
      failures[task] = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  threads.reserve(tasks);
  try {
    for (std::size_t task = 1; task < tasks; ++task) {
      threads.emplace_back([&, task] {
        if (cpu::prepare_to_throw()) run(task);
      });
    }
  } catch (...) {
    // The system is short of threads or memory.
  }
  run(0);
  for (std::thread& thread : threads) thread.join();
  for (std::size_t task = 1; task < tasks; ++task) {
    if (is_done[task] == 0) run(task);
  }
  for (const std::exception_ptr& failure : failures) {
    if (failure) std::rethrow_exception(failure);
  }
}

// Throws what a commit has failed with, and says so if it cannot be excluded that it, or another
// one before it, has written something.
[[noreturn]] void throw_failure(const CommitFailure& failure, bool others_have_begun) {
  if (!failure.has_begun && !others_have_begun) std::rethrow_exception(failure.error);
  std::string reason = "a GPU";
  try {
    std::rethrow_exception(failure.error);
  } catch (const std::exception& error) {
    reason = error.what();
  }
  throw std::runtime_error(reason +
                           "; some layers may have been written and others not: load the weights "
                           "again from where they were saved");
}

// Python makes no other ones.
void check_sharding(const Sharding& sharding, const std::vector<Layer>& tensors) {
  if (sharding.pieces.size() != tensors.size() ||
      sharding.begins.size() != sharding.layers.size()) {
    throw std::invalid_argument("a sharding needs a piece for each tensor of the call");
  }
  for (std::size_t i = 0; i < tensors.size(); ++i) {
    const Piece& piece = sharding.pieces[i];
    if (piece.layer >= sharding.layers.size() ||
        piece.index_steps.size() != tensors[i].shape.size() ||
        sharding.layers[piece.layer].dtype != tensors[i].dtype) {
      throw std::invalid_argument("piece " + std::to_string(i) + " does not fit its layer");
    }
  }
}

}  // namespace

Backends::Backends(const Job& job, const Machine& machine)
    : job_(job),
      layers_(machine.sharding ? machine.sharding->layers : job.layers),
      sharding_(machine.sharding ? &*machine.sharding : nullptr),
      pool_(machine.threads),
      all_(layers_.size()),
      here_(job.layers.size()),
      home_of_(job.layers.size()) {
  cpu::prepare_to_throw();
  check_layers(job.layers);
  if (sharding_ != nullptr) check_sharding(*sharding_, job.layers);
  std::iota(all_.begin(), all_.end(), std::size_t{0});
  std::iota(here_.begin(), here_.end(), std::size_t{0});
  std::vector<int> devices;
  for (std::size_t i = 0; i < job.layers.size(); ++i) {
    const int device = job.layers[i].device;
    if (!job.targets.empty() && job.targets[i].device != device) {
      throw std::invalid_argument("a layer and its target live on different devices");
    }
    if (std::find(devices.begin(), devices.end(), device) == devices.end()) {
      devices.push_back(device);
    }
  }
  if (devices.empty()) devices.push_back(Layer::in_host_memory);
  std::sort(devices.begin(), devices.end());
  for (const int device : devices) {
    const bool is_host = device == Layer::in_host_memory;
    homes_.push_back({device, is_host ? cpu::host_backend(job_, pool_)
                                      : cuda::gpu_backend(job_, gpu_of(machine, device))});
  }
  for (std::size_t i = 0; i < job.layers.size(); ++i) {
    while (homes_[home_of_[i]].device != job.layers[i].device) ++home_of_[i];
  }
  if (sharding_ == nullptr) return;
  std::int64_t most_bins = homes_[0].backend->most_bins();
  for (const Home& home : homes_) most_bins = std::min(most_bins, home.backend->most_bins());
  exchange_.emplace(*sharding_, most_bins);
}

std::vector<Backends::Share> Backends::divide(const LayerIds& ids) const {
  std::vector<Share> shares;
  for (const Home& home : homes_) shares.push_back({home.backend.get(), {}, {}});
  for (std::size_t position = 0; position < ids.size(); ++position) {
    Share& share = shares[home_of_[ids[position]]];
    share.ids.push_back(ids[position]);
    share.positions.push_back(position);
  }
  const auto is_empty = [](const Share& share) { return share.ids.empty(); };
  shares.erase(std::remove_if(shares.begin(), shares.end(), is_empty), shares.end());
  return shares;
}

// Calls body(share) concurrently for every backend that has any of the layers.
template <class Body>
void Backends::for_each(const LayerIds& ids, Body&& body) {
  std::vector<Share> shares = divide(ids);
  if (shares.size() == 1) {
    body(shares[0]);
  } else if (!shares.empty()) {
    run_together(shares.size(), [&](std::size_t s) { body(shares[s]); });
  }
}

// ask(share) returns one backend's results for its share; gather returns all of them in the order
// of the ids. Every layer lives in one backend, so there is nothing to merge but the order.
template <class Result, class Ask>
std::vector<Result> Backends::gather(const LayerIds& ids, Ask&& ask) {
  std::vector<Result> results(ids.size());
  for_each(ids, [&](const Share& share) {
    std::vector<Result> found = ask(share);
    for (std::size_t s = 0; s < found.size(); ++s) {
      results[share.positions[s]] = std::move(found[s]);
    }
  });
  return results;
}

std::vector<std::uint64_t> Backends::largest_keys(const LayerIds& ids) {
  const auto ask = [&](const LayerIds& pieces) {
    return gather<std::uint64_t>(
        pieces, [](const Share& share) { return share.backend->largest_keys(share.ids); });
  };
  if (ids.empty()) return {};
  return exchange_ ? exchange_->largest_keys(ids, ask) : ask(ids);
}

std::vector<LogHistogram> Backends::draw(const LayerIds& ids) {
  const auto ask = [&](const LayerIds& pieces) {
    return gather<LogHistogram>(pieces,
                                [](const Share& share) { return share.backend->draw(share.ids); });
  };
  std::vector<LogHistogram> histograms = exchange_ ? exchange_->draw(ids, ask) : ask(ids);
  for (const LogHistogram& histogram : histograms) counts_.drawn += histogram.drawn;
  return histograms;
}

std::vector<GroupTallies> Backends::tally(const LayerIds& ids,
                                          const std::vector<TallyRequest>& requests) {
  const auto ask = [&](const LayerIds& pieces, const std::vector<TallyRequest>& asked) {
    return gather<GroupTallies>(pieces, [&](const Share& share) {
      return share.backend->tally(share.ids, pick(asked, share.positions));
    });
  };
  return exchange_ ? exchange_->tally(ids, requests, ask) : ask(ids, requests);
}

std::vector<Tally> Backends::probe(const LayerIds& ids, const std::vector<TallyRequest>& requests) {
  for (const std::size_t id : ids) counts_.read += layers_[id].size;
  return gather<Tally>(ids, [&](const Share& share) {
    return share.backend->probe(share.ids, pick(requests, share.positions));
  });
}

std::vector<PartitionResult> Backends::partition(const LayerIds& ids,
                                                 const std::vector<PartitionRequest>& requests,
                                                 const MaskSink& masks, StoreLimit limit) {
  const auto ask = [&](const LayerIds& pieces, const std::vector<PartitionRequest>& asked) {
    return gather<PartitionResult>(pieces, [&](const Share& share) {
      return partition_in(*share.backend, share.ids, pick(asked, share.positions), masks, limit);
    });
  };
  std::vector<PartitionResult> results =
      exchange_ ? exchange_->partition(ids, requests, ask) : ask(ids, requests);
  count_reads(ids, requests);
  for (std::size_t p = 0; p < ids.size(); ++p) {
    if (!requests[p].of_candidates) counts_.candidates += results[p].found.inside();
  }
  return results;
}

void Backends::collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                       const KeySink& sink) {
  for_each(ids, [&](const Share& share) {
    share.backend->collect(share.ids, pick(requests, share.positions), sink);
  });
}

void Backends::count_reads(const LayerIds& ids, const std::vector<PartitionRequest>& requests) {
  for (std::size_t p = 0; p < ids.size(); ++p) {
    if (!requests[p].of_candidates) counts_.read += layers_[ids[p]].size;
  }
}

std::vector<KeysInside> Backends::keys_inside(const LayerIds& ids,
                                              const std::vector<PartitionRequest>& requests,
                                              const std::vector<std::int64_t>& counts,
                                              const MaskSink& masks) {
  const auto ask = [&](const LayerIds& pieces, const std::vector<PartitionRequest>& asked) {
    return gather<KeysInside>(pieces, [&](const Share& share) {
      return keys_in(*share.backend, share.ids, pick(asked, share.positions), masks);
    });
  };
  count_reads(ids, requests);
  return exchange_->keys_inside(ids, requests, counts, ask);
}

std::vector<std::uint64_t> Backends::smallest_keys(const LayerIds& ids,
                                                   const std::vector<PartitionRequest>& requests,
                                                   const MaskSink& masks) {
  if (ids.empty()) return {};
  const auto ask = [&](const LayerIds& pieces, const std::vector<PartitionRequest>& asked) {
    return gather<std::uint64_t>(pieces, [&](const Share& share) {
      return smallest_in(*share.backend, share.ids, pick(asked, share.positions), masks);
    });
  };
  count_reads(ids, requests);
  return exchange_ ? exchange_->smallest_keys(ids, requests, ask) : ask(ids, requests);
}

std::vector<BigUint> Backends::exact_sums_above(const LayerIds& ids,
                                                const std::vector<std::uint64_t>& keys) {
  const auto ask = [&](const LayerIds& pieces, const std::vector<std::uint64_t>& asked) {
    std::vector<BigUint> sums;
    for (std::size_t p = 0; p < pieces.size(); ++p) {
      sums.push_back(homes_[home_of_[pieces[p]]].backend->exact_sum_above(pieces[p], asked[p]));
    }
    return sums;
  };
  return exchange_ ? exchange_->exact_sums(ids, keys, ask) : ask(ids, keys);
}

void Backends::prepare(const std::vector<LayerThreshold>& thresholds, const MaskSink& masks,
                       FunctionRef<void(const std::vector<LayerThreshold>&)> sink) {
  const auto prepare_here = [&](const std::vector<LayerThreshold>& here) {
    for_each(here_, [&](const Share& share) { share.backend->prepare(share.ids, here, masks); });
    sink(thresholds);
  };
  if (!exchange_) {
    prepare_here(thresholds);
    return;
  }
  const auto count_ties = [&](std::size_t piece, const TieRequest& request) {
    return homes_[home_of_[piece]].backend->count_ties(piece, request);
  };
  thresholds_ = exchange_->of_pieces(job_.layers, thresholds, count_ties);
  together([&] { prepare_here(thresholds_); });
}

void Backends::prepare_groups(const std::vector<GroupPattern>& patterns, FunctionRef<void()> sink) {
  together([&] {
    const std::vector<GroupPattern> own = of_pieces(patterns);
    for_each(here_, [&](const Share& share) { share.backend->prepare_groups(share.ids, own); });
    sink();
  });
}

void Backends::commit() {
  bool has_begun = false;
  for (auto home = homes_.rbegin(); home != homes_.rend(); ++home) {  // the host is the first
    const std::optional<CommitFailure> failure = home->backend->commit();
    if (failure) throw_failure(*failure, has_begun);
    has_begun = true;
  }
}

std::vector<LayerStats> Backends::stats() {
  const auto ask = [&](const LayerIds& pieces) {
    return gather<LayerStats>(pieces,
                              [](const Share& share) { return share.backend->stats(share.ids); });
  };
  return exchange_ ? exchange_->stats(all_, ask) : ask(all_);
}

std::optional<ElementIndex> Backends::first_not_finite() {
  const auto ask = [&](const LayerIds& pieces) { return first_not_finite_here(pieces); };
  return exchange_ ? exchange_->first_not_finite(job_.layers, ask) : ask(here_);
}

std::optional<ElementIndex> Backends::first_not_finite_here(const LayerIds& ids) {
  std::vector<std::optional<ElementIndex>> found(homes_.size());
  for_each(ids, [&](const Share& share) {
    found[home_of_[share.ids[0]]] = share.backend->first_not_finite(share.ids);
  });
  std::optional<ElementIndex> first;
  for (const std::optional<ElementIndex>& element : found) {
    if (element && (!first || *element < *first)) first = element;
  }
  return first;
}

void Backends::score() {
  for_each(here_, [](const Share& share) { share.backend->score(share.ids); });
}

void Backends::mask_groups(const std::vector<GroupPattern>& patterns) {
  together([&] {
    const std::vector<GroupPattern> own = of_pieces(patterns);
    for_each(here_, [&](const Share& share) { share.backend->mask_groups(share.ids, own); });
  });
}

void Backends::pack(const PackedMasks& masks) {
  for_each(here_, [&](const Share& share) { share.backend->pack(share.ids, masks); });
}

void Backends::apply_packed_masks(const PackedMasks& masks) {
  for_each(here_, [&](const Share& share) { share.backend->apply_packed_masks(share.ids, masks); });
}

}  // namespace lampfast
