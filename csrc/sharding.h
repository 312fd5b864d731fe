// How the layers of a call are divided among processes: pieces, and where in their layers these
// lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

#include "communicator.h"
#include "core/layer.h"
#include "core/strided_walk.h"

namespace lampfast {

// A strided box of a layer that lies in one memory. Its elements have the same order in the piece
// as in the layer, row-major in both.
struct Piece {
  std::size_t layer;    // the id of the layer
  bool is_counted;      // false for a replica of what another rank, or another piece, counts
  std::int64_t first;   // the row-major index of its first element in the layer
  Strides index_steps;  // for each axis, by how much one step moves that index
};

// `layers` are the same on all ranks; of each only dtype, shape and size matter, as it may lie
// nowhere as a whole. `pieces` are those of this rank, one for each layer of the job.
struct Sharding {
  std::shared_ptr<Communicator> communicator;
  std::vector<Layer> layers;
  std::vector<Piece> pieces;
  // By layer: the index at which each piece of any rank begins, ascending, if each ends before the
  // next one begins; else nothing.
  std::vector<std::vector<std::int64_t>> begins;
};

}  // namespace lampfast
