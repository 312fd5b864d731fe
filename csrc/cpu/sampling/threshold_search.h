// Estimates the magnitude at which a layer has a given score, from what was found at magnitudes
// close by.
#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

namespace lampfast::cpu {

// All on a scale of logarithms, on which counts and scores are nearly straight lines.
class Threshold {
 public:
  Threshold() = default;
  // Where to look first, and how the layer is thought to behave there.
  Threshold(double at, double density, double steepness)
      : at_(at), density_(density), steepness_(steepness) {}

  // Takes in what lies below a magnitude, and which score it has.
  void learn(double at, double below, double log_score) {
    const double moved = at - at_;
    const double slope = (log_score - log_score_) / moved;
    if (std::isfinite(slope) && std::abs(moved) > 0x1p-12) {
      steepness_ = std::max(slope, 2.0);
      density_ = (below - below_) / moved;
      slope_error_ = steepness_ * std::abs(moved) / 2.0;
    }
    at_ = at;
    below_ = below;
    log_score_ = log_score;
  }

  double steepness() const { return steepness_; }  // d log score / d log magnitude
  double density() const { return density_; }      // elements per unit of log magnitude

  // Of a score.
  double log_magnitude(double log_score) const { return at_ + step(log_score); }
  double below(double log_score) const { return below_ + density_ * step(log_score); }

  // How far that magnitude may be off: the slope bends the more the steeper it is and the farther
  // apart it was measured.
  double slack(double log_score) const {
    const double far = std::abs(step(log_score));
    return far * std::min(slope_error_ + steepness_ * far / 2.0, 1.0);
  }

 private:
  // Infinite scores are those beyond the largest magnitude.
  double step(double log_score) const {
    if (std::isnan(log_score_)) return 0.0;
    return std::clamp((log_score - log_score_) / steepness_, -1.0, 1.0);
  }

  double at_ = 0.0;
  double below_ = 0.0;
  double log_score_ = std::numeric_limits<double>::quiet_NaN();  // none was found yet
  double density_ = 0.0;
  double steepness_ = 4.0;
  double slope_error_ = 0.25;
};

// Looks for where a rising function is zero: as Newton's method says, but never beyond a point
// whose value had the other sign.
class RootSearch {
 public:
  // The next point to try after one with this value; Newton's method says `next`.
  double after(double at, double value, double next) {
    (value < 0.0 ? low_ : high_) = at;
    if (next > low_ && next < high_) return next;
    if (std::isfinite(low_) && std::isfinite(high_)) return (low_ + high_) / 2.0;
    return value < 0.0 ? at + 0.5 : at - 0.5;
  }

 private:
  double low_ = -std::numeric_limits<double>::infinity();
  double high_ = std::numeric_limits<double>::infinity();
};

}  // namespace lampfast::cpu
