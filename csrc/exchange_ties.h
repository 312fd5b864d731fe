// How many of a layer's ties each of its pieces loses.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/function_ref.h"
#include "exchange.h"
#include "exchange_words.h"

namespace lampfast {

// The thresholds of this rank's pieces: which of their own elements are pruned. Ties are counted by
// count(piece, request), and sum(words, failure) adds words up over all ranks.
std::vector<LayerThreshold> thresholds_of_pieces(
    const Sharding& sharding, const std::vector<Layer>& pieces,
    const std::vector<LayerThreshold>& thresholds,
    FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)> count,
    FunctionRef<void(Words&, const Failure&)> sum);

}  // namespace lampfast
