// Survey: one streaming read that says, per layer, what lies below, inside and above its bracket.
#pragma once

#include <cstdint>
#include <vector>

#include "candidates.h"
#include "exact_sum.h"
#include "layer.h"

namespace lampfast {

// An equal share of a bracket's keys: how many elements it has, and roughly their sum of scaled
// squares: plainly added, it only narrows the search and decides nothing.
struct Slot {
  static constexpr double relative_error = 0x1p-34;

  std::int64_t count = 0;
  double sum = 0.0;
};

// What is known of one layer. Everything here merges in any order.
struct Survey {
  Bracket bracket{};
  double scale = 1.0;  // for scaled_square (magnitude.h)
  std::int64_t below = 0;
  std::int64_t above = 0;
  Sum above_sum;
  int slot_bits = 0;  // log2 of the keys in a slot
  std::vector<Slot> slots;
  bool stored = false;  // whether `candidates` are all that the bracket holds
  std::vector<Segment> candidates;

  std::int64_t inside() const {
    std::int64_t count = 0;
    for (const Slot& slot : slots) count += slot.count;
    return count;
  }
};

// Powers of two that bring each float64 layer's largest weight near 1; 1 for other dtypes.
// Throws NotFinite.
std::vector<double> scales(const std::vector<Layer>& layers, int threads);

// Reads the chosen layers and fills in their surveys, for the brackets that these hold. Candidates
// go to the store for as long as it has room. Throws NotFinite.
void survey_weights(const std::vector<Layer>& layers, const std::vector<std::size_t>& chosen,
                    std::vector<Survey>& surveys, CandidateStore& store, int threads);

// Narrows the chosen layers, whose candidates are stored, to brackets within their own.
void survey_candidates(const std::vector<Layer>& layers, const std::vector<std::size_t>& chosen,
                       const std::vector<Bracket>& brackets, std::vector<Survey>& surveys,
                       int threads);

}  // namespace lampfast
