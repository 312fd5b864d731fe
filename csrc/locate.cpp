#include "locate.h"

#include <algorithm>
#include <cmath>
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

// The bounds, within the range, of the step in which the count is reached if every step's elements
// score as the middle of such bounds: where to look first.
ScoreRange estimate(const std::vector<Profile>& profiles, const std::vector<Window>& windows,
                    const ScoreRange& range, std::int64_t count) {
  struct Part {
    double score;
    std::int64_t count;
    ScoreRange bounds;
  };
  std::vector<Part> parts;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const Window& window = windows[i];
    count -= window.begin;
    if (window.begin == window.end) continue;
    const Step* last = profiles[i].step_at(window.end - 1);
    for (const Step* step = profiles[i].step_at(window.begin); step <= last; ++step) {
      const std::int64_t begin = std::max(step->before, window.begin);
      const std::int64_t end = std::min(step->end(), window.end);
      const double low = std::max(step->least_score, range.low);
      const double high = std::max(std::min(step->most_score, range.high), low);
      parts.push_back({between(low, high), end - begin, {low, high}});
    }
  }
  // Quickselect by counts.
  auto begin = parts.begin();
  auto end = parts.end();
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end,
                     [](const Part& a, const Part& b) { return a.score < b.score; });
    std::int64_t smaller = 0;
    for (auto part = begin; part != middle; ++part) smaller += part->count;
    (count <= smaller ? end : begin) = middle;
    if (begin == middle) count -= smaller;
  }
  if (begin == end) return range;
  return begin->bounds;
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

  // Parts the range where choose(range) says, until that is an end of it, for as long as
  // judge(least, most) tells which part to keep, given bounds on how many elements of all layers
  // score at most that. The point at which it could not, or the high end.
  template <class Choose, class Judge>
  double narrow(Choose&& choose, Judge&& judge) {
    for (;;) {
      const double middle = choose(range_);
      if (!(middle > range_.low && middle < range_.high)) return range_.high;
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

// Few elements score as nearly the same; to tell those apart is for resolve.h.
constexpr double close = 0x1p-22;

// Between two relative distances from a point: the next one to look at. From nowhere (near = 0) on
// it starts in the middle of what matters and grows; once far is in sight it halves.
double next_distance(double near, double far) {
  constexpr double start = 0x1p-16;
  constexpr double growth = 16.0;
  if (near == 0.0 && far > start) return start;
  if (near == 0.0) return far > close ? far / growth : far;
  if (near < 1.0 && far > near * growth * growth) return near * growth;
  return far > near * 2.0 ? std::sqrt(near * far) : far;
}

}  // namespace

double locate(const std::vector<Profile>& profiles, std::int64_t count, ScoreRange& range,
              std::vector<Window>& windows) {
  for (std::size_t i = 0; i < windows.size(); ++i) {
    Window& window = windows[i];
    if (range.has_low()) {
      window.begin = bounds(profiles[i], range.low, window).begin;
    }
    window.end = bounds(profiles[i], range.high, window).end;
  }

  // One search for both ends for as long as the bounds decide, then one for each, from there on.
  const ScoreRange likely = estimate(profiles, windows, range, count);
  const double likely_score = between(likely.low, likely.high);
  Search both(profiles, range, windows);
  const auto half_way = [&likely](const ScoreRange& within) {
    for (const double end : {likely.low, likely.high}) {
      if (end > within.low && end < within.high) return end;
    }
    if (within.high <= within.low * (1.0 + close)) return within.high;
    return between(within.low, within.high);
  };
  const double open = both.narrow(half_way, [count](std::int64_t least, std::int64_t most) {
    if (most < count) return Verdict::too_low;
    return least >= count ? Verdict::too_high : Verdict::open;
  });
  range = both.range();
  windows = both.windows();
  if (open == range.high) return likely_score;

  std::vector<Window> below = windows;
  std::vector<Window> above = windows;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    const Window middle = bounds(profiles[i], open, windows[i]);
    below[i].end = middle.end;
    above[i].begin = middle.begin;
  }
  Search low_end(profiles, {range.low, open}, std::move(below));
  const auto downwards = [open](const ScoreRange& within) {
    return open * (1.0 - next_distance(1.0 - within.high / open, 1.0 - within.low / open));
  };
  low_end.narrow(downwards, [count](std::int64_t, std::int64_t most) {
    return most < count ? Verdict::too_low : Verdict::too_high;
  });
  Search high_end(profiles, {open, range.high}, std::move(above));
  const auto upwards = [open](const ScoreRange& within) {
    return open * (1.0 + next_distance(within.low / open - 1.0, within.high / open - 1.0));
  };
  high_end.narrow(upwards, [count](std::int64_t least, std::int64_t) {
    return least >= count ? Verdict::too_high : Verdict::too_low;
  });
  range.low = low_end.range().low;
  range.high = high_end.range().high;
  for (std::size_t i = 0; i < windows.size(); ++i) {
    windows[i] = {low_end.windows()[i].begin, high_end.windows()[i].end};
  }
  return likely_score;
}

}  // namespace lampfast
