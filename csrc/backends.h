// All backends of a call, and which layer lives where. What crosses from a backend to a stage is
// put together here, and only here: a communicator between processes will stand in this place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend.h"
#include "cpu/float_environment.h"
#include "cpu/thread_pool.h"
#include "cuda/gpu_backend.h"

namespace lampfast {

// What of the machine a call may use.
struct Machine {
  int threads;
  std::vector<cuda::Gpu> gpus;
};

// Made at the beginning of a call, and for all of it arithmetic is as everywhere
// (float_environment.h). The methods are those of Backend, each for all backends at once, which
// then work at the same time.
class Backends {
 public:
  // Throws std::invalid_argument where a layer's device is not the machine's, or not its target's.
  Backends(const Job& job, const Machine& machine);

  const std::vector<Layer>& layers() const { return job_.layers; }
  const LayerIds& all() const { return all_; }
  // For what is done in the host with what the backends found.
  cpu::ThreadPool& pool() { return pool_; }

  std::vector<std::uint64_t> largest_keys(const LayerIds& ids);
  std::vector<LogHistogram> draw(const LayerIds& ids);
  std::optional<Estimate> estimate(const std::vector<double>& scales, std::int64_t count);
  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         const MaskSink& masks, StoreLimit limit);
  std::vector<Partition> narrow(const LayerIds& ids, const std::vector<PartitionRequest>& requests);
  void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests, const KeySink& sink);
  BigUint exact_sum_above(std::size_t id, std::uint64_t key);
  // Prepares everywhere, then commits everywhere.
  void commit(const std::vector<LayerThreshold>& thresholds, const MaskSink& masks);
  std::vector<LayerStats> stats();
  std::optional<ElementIndex> first_not_finite();
  void score();
  void pack(const PackedMasks& masks);
  void apply_packed_masks(const PackedMasks& masks);

 private:
  struct Home {
    int device;
    std::unique_ptr<Backend> backend;
  };

  // Some of a call's ids, those that live in one home, and their positions among the ids.
  struct Share {
    Backend* backend;
    LayerIds ids;
    std::vector<std::size_t> positions;
  };

  std::vector<Share> divide(const LayerIds& ids) const;
  template <class Body>
  void for_each(const LayerIds& ids, Body&& body);
  template <class Result, class Ask>
  std::vector<Result> gather(const LayerIds& ids, Ask&& ask);

  const cpu::FloatEnvironment environment_;
  const Job job_;
  cpu::ThreadPool pool_;
  LayerIds all_;
  std::vector<Home> homes_;
  std::vector<std::size_t> home_of_;  // of each layer
};

}  // namespace lampfast
