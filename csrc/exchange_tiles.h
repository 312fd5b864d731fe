// TileExchange: merges what the ranks of a sharded call find of tiles (core/tiling.h), so that each
// has the same, to the last bit. Without ranks there is nothing to merge.
//
// A rank that fails between two exchanges leaves the others a note
// (lampfast/_engine/communicator.py).
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "exchange_words.h"
#include "sharding.h"

namespace lampfast {

// A sum of non-negative doubles as it is exchanged: as a multiple of 2^least, below 2^most on all
// ranks together.
struct RangedSum {
  double value;
  int least;
  int most;
};

class TileExchange {
 public:
  // `sharding` is null where layers are not sharded.
  explicit TileExchange(const Sharding* sharding)
      : communicator_(sharding == nullptr ? nullptr : sharding->communicator.get()) {}

  bool is_alone() const { return communicator_ == nullptr; }
  std::size_t ranks() const { return is_alone() ? 1 : communicator_->size(); }

  // Each is merged over all ranks, in place.
  void add(std::vector<std::int64_t>& counts, std::vector<RangedSum>& sums);
  void add(std::vector<std::int64_t>& counts);
  // Of numbers that are not negative.
  void max(std::vector<std::int64_t>& numbers);

  // The words of all ranks; where none has more than `expected`, one collective is enough.
  std::vector<Words> gather(const Words& own, std::size_t expected);

 private:
  Communicator* communicator_;
};

}  // namespace lampfast
