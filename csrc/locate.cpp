#include "locate.h"

#include <algorithm>
#include <cstddef>

#include "magnitude.h"

namespace lampfast {
namespace {

// Halfway between two positive doubles in the order of their bits: about their geometric mean.
double between(double low, double high) {
  const auto a = bit_cast<std::int64_t>(low);
  const auto b = bit_cast<std::int64_t>(high);
  return bit_cast<double>(a + (b - a) / 2);
}

// How many of a layer's elements score at most t, at least and at most, for a t in the range of the
// window.
Window bounds(const Profile& profile, double t, const Window& window) {
  return {std::clamp(profile.surely_at_most(t), window.begin, window.end),
          std::clamp(profile.possibly_at_most(t), window.begin, window.end)};
}

enum class Verdict { too_low, too_high, open };

// A range of scores, with the windows of all layers for it: what surely lies up to its low end, and
// what possibly lies up to its high end.
class Search {
 public:
  Search(const std::vector<Profile>& profiles, ScoreRange range, std::vector<Window> windows)
      : profiles_(&profiles), range_(range), windows_(std::move(windows)) {
    for (std::size_t i = 0; i < windows_.size(); ++i) active_.push_back(i);
    drop_settled();
  }

  // Halves the range for as long as judge(least, most) tells which half to keep, given bounds on
  // how many elements of all layers score at most the middle. The middle at which it could not.
  template <class Judge>
  double narrow(Judge&& judge) {
    constexpr double close_enough = 1.0 + 0x1p-37;
    while (range_.high > range_.low * close_enough) {
      const double middle = between(range_.low, range_.high);
      std::int64_t least = settled_;
      std::int64_t most = settled_;
      middle_.clear();
      for (const std::size_t i : active_) {
        middle_.push_back(bounds((*profiles_)[i], middle, windows_[i]));
        least += middle_.back().begin;
        most += middle_.back().end;
      }
      const Verdict verdict = judge(least, most);
      if (verdict == Verdict::open) return middle;
      for (std::size_t a = 0; a < active_.size(); ++a) {
        Window& window = windows_[active_[a]];
        if (verdict == Verdict::too_low) {
          window.begin = middle_[a].begin;
        } else {
          window.end = middle_[a].end;
        }
      }
      (verdict == Verdict::too_low ? range_.low : range_.high) = middle;
      drop_settled();
    }
    return range_.high;
  }

  const ScoreRange& range() const { return range_; }
  const std::vector<Window>& windows() const { return windows_; }

 private:
  // A layer with an empty window has as many elements up to any score of the range.
  void drop_settled() {
    const auto settled = [this](std::size_t i) {
      if (windows_[i].begin < windows_[i].end) return false;
      settled_ += windows_[i].begin;
      return true;
    };
    active_.erase(std::remove_if(active_.begin(), active_.end(), settled), active_.end());
  }

  const std::vector<Profile>* profiles_;
  ScoreRange range_;
  std::vector<Window> windows_;
  std::vector<std::size_t> active_;
  std::vector<Window> middle_;  // of the active layers
  std::int64_t settled_ = 0;    // elements of the others
};

}  // namespace

void locate(const std::vector<Profile>& profiles, std::int64_t count, ScoreRange& range,
            std::vector<Window>& windows) {
  for (std::size_t i = 0; i < windows.size(); ++i) {
    Window& window = windows[i];
    if (range.low > ScoreRange::least_score) {
      window.begin = bounds(profiles[i], range.low, window).begin;
    }
    window.end = bounds(profiles[i], range.high, window).end;
  }

  // One search for both ends for as long as the bounds decide, then one for each.
  Search both(profiles, range, windows);
  const double open = both.narrow([count](std::int64_t least, std::int64_t most) {
    if (most < count) return Verdict::too_low;
    return least >= count ? Verdict::too_high : Verdict::open;
  });
  range = both.range();
  windows = both.windows();
  if (open == range.high) return;

  std::vector<Window> below = windows;
  std::vector<Window> above = windows;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const Window middle = bounds(profiles[i], open, windows[i]);
    below[i].end = middle.end;
    above[i].begin = middle.begin;
  }
  Search low_end(profiles, {range.low, open}, std::move(below));
  low_end.narrow([count](std::int64_t, std::int64_t most) {
    return most < count ? Verdict::too_low : Verdict::too_high;
  });
  Search high_end(profiles, {open, range.high}, std::move(above));
  high_end.narrow([count](std::int64_t least, std::int64_t) {
    return least >= count ? Verdict::too_high : Verdict::too_low;
  });
  range = {low_end.range().low, high_end.range().high};
  for (std::size_t i = 0; i < windows.size(); ++i) {
    windows[i] = {low_end.windows()[i].begin, high_end.windows()[i].end};
  }
}

}  // namespace lampfast
