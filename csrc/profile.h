// A layer's elements in order of magnitude, as steps between which the score is bounded rigorously.
#pragma once

#include <cstdint>
#include <vector>

#include "goal.h"
#include "layer.h"
#include "survey.h"

namespace lampfast {

// Equal magnitudes and how many there are.
struct Run {
  std::uint64_t key;
  std::int64_t count;
};

// Elements with keys in [first, last], consecutive in the layer's order.
struct Step {
  std::uint64_t first;
  std::uint64_t last;
  std::int64_t before;  // elements of the layer that come earlier
  std::int64_t count;
  double after;        // the sum of the scaled squares of all that come later
  double least_score;  // rigorous bounds on the scores of its elements, or their magnitudes where
  double most_score;   // these are what ranks them

  bool is_run() const { return first == last; }  // equal magnitudes: nothing is left to find out
  std::int64_t end() const { return before + count; }
};

class Profile {
 public:
  Profile() = default;

  // From the survey's slots or, once the candidates have been sorted, from their runs. Of those
  // outside the range of scores that matter, only the step next above it is kept apart.
  Profile(Dtype dtype, Ranking ranking, const Survey& survey, const std::vector<Run>& runs,
          const ScoreRange& range);

  // Bounds on how many elements score at most t; these are the first in the layer's order.
  // For scores t >= ScoreRange::least_score, and all magnitudes.
  std::int64_t surely_at_most(double t) const;
  std::int64_t possibly_at_most(double t) const;

  // The step that holds a position of the layer's order; the position must be less than the size.
  const Step* step_at(std::int64_t position) const;

  // The first step that may have elements that score at least t, or the last one; there must be
  // one.
  const Step* step_reaching(double t) const;

  double square(std::uint64_t key) const;  // scaled, as the sums are
  double magnitude(std::uint64_t key) const;
  const std::vector<Step>& steps() const { return steps_; }

 private:
  void merge(std::size_t begin, std::size_t end);
  bool is_divided(const Step& step) const;

  Dtype dtype_{};
  Ranking ranking_{};
  double scale_ = 1.0;
  std::vector<Step> steps_;
};

}  // namespace lampfast
