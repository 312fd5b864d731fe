// Place: somewhere layers live, and what the stages ask of them there: host memory, or one GPU.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "census.h"
#include "exact_sum.h"
#include "layer.h"
#include "packed_mask.h"
#include "sketch.h"
#include "survey.h"

namespace lampfast {

// A call's layers, and what is written for each: its mask, its pruned weights or its scores.
struct Job {
  const std::vector<Layer>& layers;
  const std::vector<Layer>& targets;  // as many, or none

  bool writes_masks() const { return !targets.empty() && targets[0].dtype == Dtype::boolean; }
};

// The chosen layers must live there. What is started for some of them must be finished for the
// same ones before anything else is asked for: in between, other places can do their part.
class Place {
 public:
  virtual ~Place() = default;

  // As in survey.h, of float64 layers. Throws NotFinite.
  virtual void find_scales(const Chosen& chosen, std::vector<double>& scales) = 0;

  // As in sketch.h.
  virtual void start_sketches(const Chosen& chosen) = 0;
  virtual void finish_sketches(const Chosen& chosen, std::vector<Sketch>& sketches) = 0;

  // survey_weights and survey_candidates of survey.h. All candidates are stored where there is no
  // limit, whatever memory they take.
  virtual void start_survey(const Chosen& chosen, std::vector<Survey>& surveys, bool limited) = 0;
  virtual void finish_survey(const Chosen& chosen, std::vector<Survey>& surveys) = 0;
  virtual void survey_candidates(const Chosen& chosen, const std::vector<Bracket>& brackets,
                                 std::vector<Survey>& surveys) = 0;

  // candidate_keys of survey.h, for each of those that were fetched together. Asked for by many
  // threads at once.
  virtual void fetch_candidates(const Chosen& chosen, const std::vector<Survey>& surveys) = 0;
  virtual std::vector<std::uint64_t> candidate_keys(std::size_t layer, const Survey& survey) = 0;

  // The exact sum of the squares of a layer's magnitudes above a key, by one more read of it.
  virtual Natural exact_sum_above(std::size_t layer, std::uint64_t key) = 0;

  // Writes the targets (apply.h); the surveys may be missing. What may fail comes before, in all
  // places, so that nothing is written unless everything is.
  virtual void prepare_apply(const Chosen& chosen, const std::vector<Cut>& cuts,
                             const std::vector<Survey>& surveys) = 0;
  virtual void apply(const Chosen& chosen, const std::vector<Cut>& cuts,
                     const std::vector<Survey>& surveys) = 0;

  // As in census.h and scores.h. Throw NotFinite.
  virtual void census(const Chosen& chosen, std::vector<Cut>& cuts) = 0;
  virtual std::optional<Element> first_not_finite(const Chosen& chosen) = 0;
  virtual void score(const Chosen& chosen) = 0;

  // As in keep.h.
  virtual void pack(const Chosen& chosen, const PackedMasks& masks) = 0;
  virtual void keep(const Chosen& chosen, const PackedMasks& masks) = 0;
};

}  // namespace lampfast
