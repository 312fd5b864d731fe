// Survey: one streaming read that says, per layer, what lies below, inside and above its bracket.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "candidates.h"
#include "cpu/parallel.h"
#include "exact_sum.h"
#include "layer.h"

namespace lampfast {

// The smallest and the largest key of a slot's elements, counted from the slot's first key.
struct Ends {
  std::uint64_t first = ~std::uint64_t{0};
  std::uint64_t last = 0;

  void take(std::uint64_t key) {
    first = std::min(first, key);
    last = std::max(last, key);
  }
};

// An equal share of a bracket's keys: how many elements it has, and roughly their sum of scaled
// squares: plainly added, it only narrows the search and decides nothing. Its elements' keys lie in
// [first, last], counted from the slot's first key, where that is closer than the whole slot.
struct Slot {
  static constexpr double relative_error = 0x1p-34;

  std::int64_t count = 0;
  double sum = 0.0;
  std::uint64_t first = 0;
  std::uint64_t last = ~std::uint64_t{0};

  // To elements with these ends; what was there before has been narrowed to its own.
  void widen(const Ends& ends) {
    const bool is_new = first == 0 && last == ~std::uint64_t{0};
    first = is_new ? ends.first : std::min(first, ends.first);
    last = is_new ? ends.last : std::max(last, ends.last);
  }
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
  double scale = 1.0;      // for scaled_square (magnitude.h)
  Sides sides;             // of the narrowest bracket yet
  int slot_bits = 0;       // log2 of the keys in a slot
  bool with_ends = false;  // whether slots are to know their smallest and largest keys (GPUs' do)
  std::vector<Slot> slots;

  Sides read_sides;                 // of the bracket that the weights were last read with,
  bool stored = false;              // whether all that this bracket holds has been stored,
  std::vector<Segment> candidates;  // here, by position, where the layer is in host memory,
  bool fused = false;  // and whether its mask was written then, the candidates left undecided

  // What is asked of the next read of the weights, and nothing that is known yet.
  Survey anew() const {
    Survey survey;
    survey.scale = scale;
    survey.sides.bracket = sides.bracket;
    survey.with_ends = with_ends;
    return survey;
  }

  // Whether no element outside that bracket is on the wrong side of the cut.
  bool holds(const Cut& cut, std::int64_t size) const {
    const Bracket& bracket = read_sides.bracket;
    return cut.key >= bracket.low &&
           (cut.key < bracket.high || cut.pruned == size - read_sides.above);
  }

  // Makes as many slots as wanted or somewhat fewer, each a power of two of keys wide.
  void lay_out_slots(std::int64_t wanted) {
    const std::uint64_t keys = sides.bracket.high - sides.bracket.low;
    slot_bits = 0;
    while ((keys >> slot_bits) >= static_cast<std::uint64_t>(wanted)) ++slot_bits;
    slots.assign(static_cast<std::size_t>((keys >> slot_bits) + 1), Slot{});
  }

  std::int64_t inside() const {
    std::int64_t count = 0;
    for (const Slot& slot : slots) count += slot.count;
    return count;
  }
};

// A power of two that brings a float64 layer's largest weight near 1 (other dtypes have scale 1).
// Throws NotFinite where that weight is not finite.
double scale_for(std::uint64_t largest_key);

// Fills in the scales of the chosen layers, which are float64.
void find_scales(const std::vector<Layer>& layers, const Chosen& chosen,
                 std::vector<double>& scales, cpu::Team& team);

// Whether the positions of a layer's elements (walk.h) are places in its memory and in its
// target's.
bool alike(const Layer& layer, const Layer& target);

// Reads the chosen layers and fills in their surveys, for the brackets of their `sides`. Candidates
// are stored for as long as the budget lasts. Where there are masks, those that lie in memory as
// their layers do are written on the way. Throws NotFinite.
void survey_weights(const std::vector<Layer>& layers, const std::vector<Layer>& masks,
                    const Chosen& chosen, std::vector<Survey>& surveys,
                    const std::shared_ptr<CandidateBudget>& budget, cpu::Team& team);

// Narrows the chosen layers, whose candidates are stored, to brackets within their own.
void survey_candidates(const std::vector<Layer>& layers, const Chosen& chosen,
                       const std::vector<Bracket>& brackets, std::vector<Survey>& surveys,
                       cpu::Team& team);

// The keys inside the bracket of a layer whose candidates are stored, in any order.
std::vector<std::uint64_t> candidate_keys(const Layer& layer, const Survey& survey);

}  // namespace lampfast
