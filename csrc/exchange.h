// Exchange: merges what the pieces of all ranks have, so that every rank has the same findings, to
// the last bit, and takes the same decisions. docs/design.md, "Processes", lists what is exchanged.
#pragma once

#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <vector>

#include "backend.h"
#include "core/function_ref.h"
#include "core/test_sizes.h"
#include "sharding.h"

namespace lampfast {

// A layer with at most this many candidates has their keys gathered rather than narrowed further.
// An exchange takes longer than so many keys.
constexpr std::int64_t most_exchanged_keys = test_sizes ? 16 : 1024;

// Why a rank could not do its part of a stage. It takes part in the stage's exchange nevertheless,
// so that all ranks fail together.
struct Failure {
  std::exception_ptr error;
  bool is_not_finite = false;  // what NotFinite stands for, of which nothing but this is told
};

template <class Body>
Failure attempt(Body&& body) {
  try {
    body();
  } catch (const NotFinite&) {
    return {nullptr, true};
  } catch (...) {
    return {std::current_exception(), false};
  }
  return {};
}

// Every method asks for the findings of this rank's pieces and returns those of whole layers, in
// the order of the ids. If a rank fails, all throw: it what has failed, others std::runtime_error,
// which names the rank; all of them NotFinite where that is the reason.
class Exchange {
 public:
  // Finds something for each of the pieces, which are given by their ids.
  template <class Found, class... Requests>
  using Ask = FunctionRef<std::vector<Found>(const LayerIds&, const std::vector<Requests>&...)>;

  // `most_bins` is how many bins every backend of this rank can have.
  Exchange(const Sharding& sharding, std::int64_t most_bins);

  std::vector<std::uint64_t> largest_keys(const LayerIds& ids, Ask<std::uint64_t> ask);
  std::vector<LogHistogram> draw(const LayerIds& ids, Ask<LogHistogram> ask);
  std::vector<GroupTallies> tally(const LayerIds& ids, const std::vector<TallyRequest>& requests,
                                  Ask<GroupTallies, TallyRequest> ask);
  std::vector<PartitionResult> partition(const LayerIds& ids,
                                         const std::vector<PartitionRequest>& requests,
                                         Ask<PartitionResult, PartitionRequest> ask);
  // `counts` tells roughly how many keys each has.
  std::vector<KeysInside> keys_inside(const LayerIds& ids,
                                      const std::vector<PartitionRequest>& requests,
                                      const std::vector<std::int64_t>& counts,
                                      Ask<KeysInside, PartitionRequest> ask);
  std::vector<std::uint64_t> smallest_keys(const LayerIds& ids,
                                           const std::vector<PartitionRequest>& requests,
                                           Ask<std::uint64_t, PartitionRequest> ask);
  std::vector<BigUint> exact_sums(const LayerIds& ids, const std::vector<std::uint64_t>& keys,
                                  Ask<BigUint, std::uint64_t> ask);
  std::vector<LayerStats> stats(const LayerIds& ids, Ask<LayerStats> ask);
  // ask(pieces) finds the first one of the pieces.
  std::optional<ElementIndex> first_not_finite(
      const std::vector<Layer>& pieces,
      FunctionRef<std::optional<ElementIndex>(const LayerIds&)> ask);

  // The thresholds of this rank's pieces: which of their own elements are pruned. Ties are counted
  // by ask(piece, key, parts).
  std::vector<LayerThreshold> of_pieces(
      const std::vector<Layer>& pieces, const std::vector<LayerThreshold>& thresholds,
      FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)> ask);

  // Throws on all ranks if one of them fails.
  void agree(const Failure& failure);

 private:
  // The pieces of some layers that are counted here, and their layers' positions among the ids.
  struct Counted {
    LayerIds pieces;
    std::vector<std::size_t> positions;
  };
  using Words = std::vector<std::int64_t>;

  Counted counted(const LayerIds& ids) const;
  // Asks for the keys of this rank's pieces, and adds them up by layer.
  void add_own_keys(const LayerIds& ids, const std::vector<PartitionRequest>& requests,
                    Ask<KeysInside, PartitionRequest> ask, std::vector<KeysInside>& own) const;
  void sum(Words& words, const Failure& failure, std::uint64_t question);
  void max(Words& words, const Failure& failure);
  void min(std::vector<std::uint64_t>& keys, const Failure& failure);

  const Sharding& sharding_;
  std::int64_t most_bins_;  // after the draw: of any rank
  Communicator& communicator_;
};

}  // namespace lampfast
