// Survey: one streaming read that says, per layer, what lies below, inside and above its bracket.
#pragma once

#include <cstdint>
#include <vector>

#include "candidates.h"
#include "cpu/parallel.h"
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

// What a bracket leaves on either side.
struct Sides {
  Bracket bracket{};
  std::int64_t below = 0;
  std::int64_t above = 0;
  Sum above_sum;

  void add(const Sides& other) {
    below += other.below;
    above += other.above;
    above_sum.add(other.above_sum);
  }
};

// What is known of one layer. Everything here merges in any order.
struct Survey {
  double scale = 1.0;  // for scaled_square (magnitude.h)
  Sides sides;         // of the narrowest bracket yet
  int slot_bits = 0;   // log2 of the keys in a slot
  std::vector<Slot> slots;

  Sides read_sides;                 // of the bracket that the weights were last read with,
  bool stored = false;              // whether `candidates` are all that this bracket holds,
  std::vector<Segment> candidates;  // by position,
  bool fused = false;  // and whether its mask was written then, the candidates left undecided

  // Whether no element outside that bracket is on the wrong side of the cut.
  bool holds(const Cut& cut, std::int64_t size) const {
    const Bracket& bracket = read_sides.bracket;
    return cut.key >= bracket.low &&
           (cut.key < bracket.high || cut.pruned == size - read_sides.above);
  }

  std::int64_t inside() const {
    std::int64_t count = 0;
    for (const Slot& slot : slots) count += slot.count;
    return count;
  }
};

// Powers of two that bring each float64 layer's largest weight near 1; 1 for other dtypes.
// Throws NotFinite.
std::vector<double> scales(const std::vector<Layer>& layers, cpu::Team& team);

// Reads the chosen layers and fills in their surveys, for the brackets of their `sides`. Candidates
// are stored for as long as the budget lasts. Where there are masks, those that lie in memory as
// their layers do are written on the way. Throws NotFinite.
void survey_weights(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                    const std::vector<std::size_t>& chosen, std::vector<Survey>& surveys,
                    const std::shared_ptr<CandidateBudget>& budget, cpu::Team& team);

// Narrows the chosen layers, whose candidates are stored, to brackets within their own.
void survey_candidates(const std::vector<Layer>& layers, const std::vector<std::size_t>& chosen,
                       const std::vector<Bracket>& brackets, std::vector<Survey>& surveys,
                       cpu::Team& team);

}  // namespace lampfast
