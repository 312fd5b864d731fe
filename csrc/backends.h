// All backends of one call, and which layer lives in which. Results of several backends, and those
// of other processes, are merged here and nowhere else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "backend.h"
#include "core/call_profile.h"
#include "cpu/float_environment.h"
#include "cpu/thread_pool.h"
#include "cuda/gpu_backend.h"
#include "exchange.h"
#include "sharding.h"

namespace lampfast {

// The part of the machine that a call may use, and how its layers are divided among processes, if
// they are.
struct Machine {
  int threads;
  std::vector<cuda::Gpu> gpus;
  std::optional<Sharding> sharding;
};

// Lives for the length of one call, and for that long fixes the calling thread's floating-point
// environment (cpu/float_environment.h). The methods are those of Backend; each asks all backends
// at once, and these work concurrently.
//
// If layers are sharded, those of the job are this rank's pieces of them. Requests and results are
// of whole layers nevertheless, and the same on all ranks; only those of score, pack and
// apply_packed_masks are of pieces, as these tell other ranks nothing.
class Backends {
 public:
  // Throws std::invalid_argument if check_layers (core/check_layers.h) does, or if a layer's device
  // is not one of the machine's or differs from its target's. The machine must outlive the
  // backends.
  Backends(const Job& job, const Machine& machine);

  // Those that are ranked. Of sharded ones, only dtype, shape and size matter.
  const std::vector<Layer>& layers() const { return layers_; }
  const LayerIds& all() const { return all_; }
  const ReadCounts& counts() const { return counts_; }
  // What lies here: the layers, or this rank's pieces of them.
  const std::vector<Layer>& pieces() const { return job_.layers; }
  const Sharding* sharding() const { return sharding_; }  // null if layers are not sharded
  // For each piece what its layer has.
  template <class T>
  std::vector<T> of_pieces(const std::vector<T>& values) const {
    if (!is_sharded()) return values;
    std::vector<T> own;
    for (const Piece& piece : sharding_->pieces) own.push_back(values[piece.layer]);
    return own;
  }
  // For work in the host on what the backends found.
  cpu::ThreadPool& pool() { return pool_; }

  std::vector<std::uint64_t> largest_keys(const LayerIds& ids);
  std::vector<LogHistogram> draw(const LayerIds& ids);
  std::vector<GroupTallies> tally(const LayerIds& ids, const std::vector<TallyRequest>& requests);
  // Of layers that are not sharded.
  std::vector<Tally> probe(const LayerIds& ids, const std::vector<TallyRequest>& requests);
  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         const MaskSink& masks, StoreLimit limit);
  void collect(const LayerIds& ids, const std::vector<KeyRequest>& requests, const KeySink& sink);
  // Of sharded layers: all keys inside intervals, whatever memory that takes, for ranks to tell
  // each other at once. `counts` tells roughly how many keys each has.
  std::vector<KeysInside> keys_inside(const LayerIds& ids,
                                      const std::vector<PartitionRequest>& requests,
                                      const std::vector<std::int64_t>& counts,
                                      const MaskSink& masks);
  // The smallest keys inside intervals, which may hold 0; no_key where nothing is inside.
  std::vector<std::uint64_t> smallest_keys(const LayerIds& ids,
                                           const std::vector<PartitionRequest>& requests,
                                           const MaskSink& masks);
  // Backend::most_sorted, of a layer that is not sharded.
  std::int64_t most_sorted(std::size_t id) const {
    return homes_[home_of_[id]].backend->most_sorted(id);
  }
  // Runs body(), which asks for what no exchange is of. If it fails on one rank, all throw.
  template <class Body>
  void together(Body&& body) {
    if (exchange_) {
      exchange_->agree(attempt(body));
    } else {
      body();
    }
  }
  // Exact sums are rarely needed of more than a few layers, but where each call takes an exchange,
  // all that may be needed should be asked for at once.
  bool is_sharded() const { return sharding_ != nullptr; }
  std::vector<BigUint> exact_sums_above(const LayerIds& ids,
                                        const std::vector<std::uint64_t>& keys);
  // Prepares the commit, and passes the thresholds on, which is the last that may fail.
  void prepare(const std::vector<LayerThreshold>& thresholds, const MaskSink& masks,
               FunctionRef<void(const std::vector<LayerThreshold>&)> sink);
  // The same for groups, none of which lies in several pieces; the sink tells what is pruned.
  void prepare_groups(const std::vector<GroupPattern>& patterns, FunctionRef<void()> sink);
  // On one backend after the other, since threads might not start: the GPUs, which only queue their
  // kernels, then the host. Throws std::runtime_error if a GPU fails, which says whether targets
  // may have changed.
  void commit();
  std::vector<LayerStats> stats();
  std::optional<ElementIndex> first_not_finite();
  void score();
  void mask_groups(const std::vector<GroupPattern>& patterns);
  void pack(const PackedMasks& masks);
  void apply_packed_masks(const PackedMasks& masks);

 private:
  struct Home {
    int device;
    std::unique_ptr<Backend> backend;
  };

  // The requested layers that live in one backend, and their positions in the request.
  struct Share {
    Backend* backend;
    LayerIds ids;
    std::vector<std::size_t> positions;
  };

  std::vector<Share> divide(const LayerIds& ids) const;
  void count_reads(const LayerIds& ids, const std::vector<PartitionRequest>& requests);
  template <class Body>
  void for_each(const LayerIds& ids, Body&& body);
  template <class Result, class Ask>
  std::vector<Result> gather(const LayerIds& ids, Ask&& ask);
  std::optional<ElementIndex> first_not_finite_here(const LayerIds& ids);

  const cpu::FloatEnvironment environment_;
  const Job job_;
  const std::vector<Layer>& layers_;
  const Sharding* const sharding_;  // null if layers are not sharded
  std::optional<Exchange> exchange_;
  cpu::ThreadPool pool_;
  LayerIds all_;
  LayerIds here_;                           // the same, or all pieces
  std::vector<LayerThreshold> thresholds_;  // of pieces
  std::vector<Home> homes_;
  ReadCounts counts_;
  std::vector<std::size_t> home_of_;  // by layer: which of the homes it lives in
};

}  // namespace lampfast
