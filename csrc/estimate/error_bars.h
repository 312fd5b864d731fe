// How far the estimated threshold scores may be off: a jackknife over paired groups of the draws,
// carried through to the scores by the delta method.
#pragma once

#include <array>
#include <cstddef>
#include <vector>

#include "core/drawn_pieces.h"
#include "core/group_tallies.h"

namespace lampfast {

// How a layer's draw may be off at its threshold, as each pair of groups tells.
struct DrawErrors {
  using Pairs = std::array<float, draw_pairs>;

  Pairs count{};    // of the elements below, in elements
  Pairs log_sum{};  // of the logarithm of the sum of squares above

  DrawErrors() = default;
  // Of a layer of `size` elements whose sum from the threshold on is `sum`. The tallies are those
  // at the threshold or, once a probe has told the truth at another key, of what lies between.
  DrawErrors(const GroupTallies& tallies, double size, double sum);

  // The variance of the logarithm of the sum. By about as much is that logarithm too small on
  // average, as the logarithm of a noisy sum is.
  double log_sum_variance() const;
};

// A layer's part in the errors of a threshold score that it shares with other layers.
struct LayerErrors {
  DrawErrors draw;
  double flow = 0.0;        // see ScoreCount
  double unevenness = 0.0;  // see ScoreCount
  double reach = 0.0;       // how far the logarithm of the score at its threshold may be off
};

// Of the threshold score of some layers.
struct ErrorBars {
  double count = 0.0;               // standard deviation of the count of elements below the score
  double log_score = 0.0;           // of the logarithm of the score
  double bias = 0.0;                // of that logarithm: how much too large it is on average
  DrawErrors::Pairs pair_errors{};  // of that logarithm, as each pair of groups tells

  // Of `count` layers from `layers` on.
  ErrorBars(const LayerErrors* layers, std::size_t count);

  // How far, in standard deviations, the logarithm of the score that a layer's own curve has at its
  // threshold may be off: the errors of the score and of the layer's sum, which cancel in part
  // where one layer decides the score.
  double of_layer(const DrawErrors& draw) const;

 private:
  double uneven_ = 0.0;  // the variance of that logarithm that unevenness causes
};

}  // namespace lampfast
