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

// The values at these positions.
template <class T>
std::vector<T> pick(const std::vector<T>& values, const std::vector<std::size_t>& positions) {
  std::vector<T> picked;
  picked.reserve(positions.size());
  for (const std::size_t position : positions) picked.push_back(values[position]);
  return picked;
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

}  // namespace

Backends::Backends(const Job& job, const Machine& machine)
    : job_(job), pool_(machine.threads), all_(job.layers.size()), home_of_(job.layers.size()) {
  cpu::prepare_to_throw();
  check_layers(job.layers);
  std::iota(all_.begin(), all_.end(), std::size_t{0});
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
  return gather<std::uint64_t>(
      ids, [](const Share& share) { return share.backend->largest_keys(share.ids); });
}

std::vector<LogHistogram> Backends::draw(const LayerIds& ids) {
  std::vector<LogHistogram> histograms =
      gather<LogHistogram>(ids, [](const Share& share) { return share.backend->draw(share.ids); });
  for (const LogHistogram& histogram : histograms) counts_.drawn += histogram.drawn;
  return histograms;
}

std::vector<GroupTallies> Backends::tally(const LayerIds& ids,
                                          const std::vector<TallyRequest>& requests) {
  return gather<GroupTallies>(ids, [&](const Share& share) {
    return share.backend->tally(share.ids, pick(requests, share.positions));
  });
}

std::vector<Tally> Backends::probe(const LayerIds& ids, const std::vector<TallyRequest>& requests) {
  for (const std::size_t id : ids) counts_.read += job_.layers[id].size;
  return gather<Tally>(ids, [&](const Share& share) {
    return share.backend->probe(share.ids, pick(requests, share.positions));
  });
}

std::vector<PartitionResult> Backends::partition(const LayerIds& ids,
                                                 const std::vector<PartitionRequest>& requests,
                                                 const MaskSink& masks, StoreLimit limit) {
  std::vector<PartitionResult> results = gather<PartitionResult>(ids, [&](const Share& share) {
    return share.backend->partition(share.ids, pick(requests, share.positions), masks, limit);
  });
  for (std::size_t p = 0; p < ids.size(); ++p) {
    counts_.read += job_.layers[ids[p]].size;
    counts_.candidates += results[p].found.inside();
  }
  return results;
}

std::vector<Partition> Backends::narrow(const LayerIds& ids,
                                        const std::vector<PartitionRequest>& requests) {
  return gather<Partition>(ids, [&](const Share& share) {
    return share.backend->narrow(share.ids, pick(requests, share.positions));
  });
}

void Backends::collect(const LayerIds& ids, const std::vector<KeyRequest>& requests,
                       const KeySink& sink) {
  for_each(ids, [&](const Share& share) {
    share.backend->collect(share.ids, pick(requests, share.positions), sink);
  });
}

BigUint Backends::exact_sum_above(std::size_t id, std::uint64_t key) {
  return homes_[home_of_[id]].backend->exact_sum_above(id, key);
}

void Backends::prepare(const std::vector<LayerThreshold>& thresholds, const MaskSink& masks) {
  for_each(all_, [&](const Share& share) { share.backend->prepare(share.ids, thresholds, masks); });
}

void Backends::prepare_groups(const std::vector<GroupPattern>& patterns) {
  for_each(all_, [&](const Share& share) { share.backend->prepare_groups(share.ids, patterns); });
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
  return gather<LayerStats>(all_,
                            [](const Share& share) { return share.backend->stats(share.ids); });
}

std::optional<ElementIndex> Backends::first_not_finite() {
  std::vector<std::optional<ElementIndex>> found(homes_.size());
  for_each(all_, [&](const Share& share) {
    found[home_of_[share.ids[0]]] = share.backend->first_not_finite(share.ids);
  });
  std::optional<ElementIndex> first;
  for (const std::optional<ElementIndex>& element : found) {
    if (element && (!first || *element < *first)) first = element;
  }
  return first;
}

void Backends::score() {
  for_each(all_, [](const Share& share) { share.backend->score(share.ids); });
}

void Backends::mask_groups(const std::vector<GroupPattern>& patterns) {
  for_each(all_, [&](const Share& share) { share.backend->mask_groups(share.ids, patterns); });
}

void Backends::pack(const PackedMasks& masks) {
  for_each(all_, [&](const Share& share) { share.backend->pack(share.ids, masks); });
}

void Backends::apply_packed_masks(const PackedMasks& masks) {
  for_each(all_, [&](const Share& share) { share.backend->apply_packed_masks(share.ids, masks); });
}

}  // namespace lampfast
