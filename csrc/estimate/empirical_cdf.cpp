// Turns histograms into curves, and answers questions by interpolating inside their bins.
#include "estimate/empirical_cdf.h"

#include <algorithm>
#include <cmath>

#include "core/key_format.h"
#include "core/test_sizes.h"

namespace lampfast {
namespace {

// A bin is closed once it has this part of all draws, or of those above it: what matters of the
// largest elements is a matter of few of them. So there are at most some hundreds of bins, and some
// dozens if few elements were drawn.
constexpr double few_drawn = 8192.0;
double depth_of_all(double drawn) { return drawn / (drawn < few_drawn ? 64.0 : 1024.0); }
double depth_of_bin(double depth_of_all, double drawn_above) {
  return std::max(std::min(depth_of_all, drawn_above / 8.0), 1.0);
}

}  // namespace

EmpiricalCdf::EmpiricalCdf(const Layer& layer, Ranking ranking, const LogHistogram& histogram)
    : dtype_(layer.dtype),
      by_lamp_score_(ranking == Ranking::lamp),
      is_tied_(histogram.shift == 0),
      size_(static_cast<double>(layer.size)) {
  if (histogram.drawn == 0) return;
  weight_ = size_ / static_cast<double>(histogram.drawn);
  zeros_ = weight_ * static_cast<double>(histogram.zeros);
  if (histogram.counts.size() < 2) return;
  with_format(dtype_, [&](auto format) { add_up<decltype(format)>(histogram); });
}

template <class Format>
void EmpiricalCdf::add_up(const LogHistogram& histogram) {
  using Key = typename Format::Storage;
  const auto value = [&](std::size_t bin, std::uint64_t more) {
    const std::uint64_t key = ((histogram.first + bin) << histogram.shift) + more;
    return Format::value(static_cast<Key>(std::min<std::uint64_t>(key, Format::not_finite - 1)));
  };
  const std::uint64_t half = (std::uint64_t{1} << histogram.shift) >> 1;
  const std::vector<std::uint32_t>& counts = histogram.counts;
  std::size_t bin = counts.size();  // the lowest one so far
  const double largest = value(bin - 1, half);
  // The unit's inverse, too, is a normal number of the type in which kernels tally: float64 for
  // float64, and float32 for all others.
  constexpr int most_exponent = sizeof(Key) == 8 ? 1000 : 126;
  const int exponent = std::clamp(std::ilogb(largest), -most_exponent, most_exponent);
  unit_ = std::ldexp(1.0, exponent);
  log_unit_ = exponent * std::log(2.0);
  const double inverse = std::ldexp(1.0, -exponent);
  const auto drawn = static_cast<double>(histogram.drawn);
  double below = drawn;
  double sum = 0.0;
  thread_local std::vector<Edge> buffer;
  std::vector<Edge>& found = buffer;  // from the last one down
  found.clear();
  const auto push_edge = [&](double at) {
    found.push_back({static_cast<float>(at * inverse), static_cast<float>(weight_ * below),
                     static_cast<float>(weight_ * sum)});
  };
  const double usual_depth = depth_of_all(drawn);
  const std::size_t wide_gap = drawn < few_drawn ? 8 : 2;
  const auto lowest = static_cast<std::size_t>(
      std::find_if(counts.begin() + 1, counts.end(), [](auto count) { return count > 0; }) -
      counts.begin());
  push_edge(is_tied_ ? largest * (1.0 + 0x1p-4) : value(bin, 0));
  while (bin > lowest) {
    const std::size_t last_edge = bin;
    while (counts[bin - 1] == 0) --bin;
    if (last_edge - bin >= wide_gap) push_edge(value(bin, 0));
    const double needed = depth_of_bin(usual_depth, drawn - below);
    double depth = 0.0;
    do {
      --bin;
      const double middle = value(bin, half) * inverse;
      sum += counts[bin] * (middle * middle);
      depth += counts[bin];
    } while (depth < needed && bin > lowest);
    below -= depth;
    push_edge(value(bin, 0));
  }
  below = 0.0;
  push_edge(0.0);
  edges_.assign(found.rbegin(), found.rend());
}

double EmpiricalCdf::log_score_of(const Edge& edge) const {
  if (by_lamp_score_) return std::log(edge.square() / edge.sum_from);
  return std::log(double{edge.magnitude}) + log_unit_;
}

double EmpiricalCdf::least_log_score() const { return log_score_of(edges_[1]); }

double EmpiricalCdf::most_log_score() const {
  return by_lamp_score_ ? std::log(2.0) : log_score_of(edges_.back());
}

// Whether an edge has at most the score.
bool EmpiricalCdf::is_reached(const Edge& edge, double score) const {
  return by_lamp_score_ ? edge.square() <= score * edge.sum_from : edge.magnitude <= score;
}

// The last bin whose first edge is reached, or the first one.
template <class IsReached>
std::size_t EmpiricalCdf::bin_where(IsReached&& is_reached) const {
  const auto next = std::partition_point(edges_.begin() + 1, edges_.end() - 1, is_reached);
  return static_cast<std::size_t>(next - edges_.begin()) - 1;
}

EmpiricalCdf::Position EmpiricalCdf::position_at(double log_score) const {
  const double score = std::exp(by_lamp_score_ ? log_score : log_score - log_unit_);
  const std::size_t bin = bin_where([&](const Edge& edge) { return is_reached(edge, score); });
  if (bin > 0) return {bin, part_at(bin, score)};
  return {0, std::clamp(1.0 + (log_score - zeros_end_) / zeros_reach, 0.0, 1.0)};
}

// Where in a bin the score is. With magnitudes m + x w and the sum of squares s - x d at the part x
// of a bin, it has the score t where (m + x w)^2 = t (s - x d).
double EmpiricalCdf::part_at(std::size_t bin, double score) const {
  const Edge& edge = edges_[bin];
  const double w = spread(bin);
  if (!by_lamp_score_) return w > 0.0 ? std::min((score - edge.magnitude) / w, 1.0) : 1.0;
  const double d = double{edge.sum_from} - edges_[bin + 1].sum_from;
  const double a = w * w;
  const double b = 2.0 * edge.magnitude * w + score * d;
  const double c = score * edge.sum_from - edge.square();
  const double part = 2.0 * c / (b + std::sqrt(b * b + 4.0 * a * c));
  return part < 1.0 ? part : 1.0;
}

ScoreCount EmpiricalCdf::at(double log_score) const {
  if (!is_known()) return {size_, 0.0};
  const Position position = position_at(log_score);
  const std::size_t bin = position.bin;
  const double elements = count_in(bin);
  if (bin == 0) {
    const bool is_inside = position.part > 0.0 && position.part < 1.0;
    return {rank(position), is_inside ? elements / zeros_reach : 0.0, 0.0};
  }
  if (position.part == 1.0) return {rank(position), 0.0, 0.0};
  // How fast the part grows with the log score: the derivative of the equation in part_at.
  const double m = magnitude(position);
  double growth = m / spread(bin);
  if (by_lamp_score_) {
    const double d = double{edges_[bin].sum_from} - edges_[bin + 1].sum_from;
    growth = m * m / (2.0 * m * spread(bin) + std::exp(log_score) * d);
  }
  const double flow = elements * growth;
  // Wherever in its bin an element lies, its log score is off by the bin's width at most; and where
  // the bins are smooth, elements are nearly as evenly spread as is assumed.
  const double width_in_scores = (by_lamp_score_ ? 2.0 : 1.0) * spread(bin) / m;
  const double most = std::min(elements, flow * width_in_scores);
  return {rank(position), flow, most * (is_rough(bin) ? 0x1p-2 : 0x1p-5)};
}

EmpiricalCdf::Position EmpiricalCdf::position_of_rank(double rank) const {
  const std::size_t bin = bin_where([&](const Edge& edge) { return edge.below <= rank; });
  const double count = count_in(bin);
  return {bin, count > 0.0 ? std::clamp((rank - edges_[bin].below) / count, 0.0, 1.0) : 0.0};
}

EmpiricalCdf::Position EmpiricalCdf::position_of_key(std::uint64_t key) const {
  const double scaled = magnitude_of(dtype_, key) / unit_;
  const std::size_t bin = bin_where([&](const Edge& edge) { return edge.magnitude <= scaled; });
  return {bin, std::clamp((scaled - edges_[bin].magnitude) / width(bin), 0.0, 1.0)};
}

// Whether the bin's neighbours tell that its elements are not spread evenly: its density differs
// from their mean by far more than chance.
bool EmpiricalCdf::is_rough(std::size_t bin) const {
  if (is_whole() || is_tied_ || bin < 2 || bin + 3 > edges_.size() - 1) return true;
  const auto density = [&](std::size_t b) { return count_in(b) / width(b); };
  const double around = (density(bin - 1) + density(bin + 1)) / 2.0;
  const double drawn = std::max(count_in(bin) / weight_, 1.0);
  return std::abs(density(bin) - around) > (0.125 + 2.5 / std::sqrt(drawn)) * around;
}

std::uint64_t EmpiricalCdf::key_of(double magnitude) const {
  return nearest_key(dtype_, magnitude * unit_);
}

std::uint64_t EmpiricalCdf::edge_near(double log_score) const {
  const Position position = position_at(log_score);
  const std::size_t edge = position.bin + (position.part < 0.5 && position.bin > 0 ? 0 : 1);
  return std::max<std::uint64_t>(key_of(edges_[std::min(edge, edges_.size() - 2)].magnitude), 1);
}

KeyInterval EmpiricalCdf::interval(double low_log_score, double high_log_score) const {
  KeyInterval interval{1, not_finite_key(dtype_)};  // zeros are told apart by being below
  if (!is_known()) return interval;
  // The first element that is kept may follow far behind the last one that is pruned.
  constexpr double few_draws = test_sizes ? 1.0 : 4.0;
  constexpr double least_part = test_sizes ? 0.0 : 0x1p-10;
  const double room = is_whole() ? 1.0 : few_draws * weight_ + least_part * size_;
  const Position low = position_of_rank(rank(position_at(low_log_score)) - room);
  // Where the score is that of zeros, all zeros of a layer may be pruned, or none.
  const double high_rank = std::max(rank(position_at(high_log_score)), zeros_) + room;
  if (low.bin > 0) {
    const double least = is_rough(low.bin) ? edges_[low.bin].magnitude : magnitude(low);
    interval.low = std::max<std::uint64_t>(key_of(least), 1);
  }
  // Unless all were drawn, the layer may have elements beyond the largest that was, but hardly far
  // beyond: bins that divided all larger magnitudes would tell little apart.
  constexpr double most_beyond = 16.0;
  interval.high =
      std::clamp(key_of(edges_.back().magnitude * most_beyond), interval.low, interval.high);
  if (high_rank < size_) {
    const Position high = position_of_rank(high_rank);
    const double most =
        is_rough(high.bin) ? double{edges_[high.bin + 1].magnitude} : magnitude(high);
    interval.high = std::clamp(key_of(most) + 2, interval.low, interval.high);
  }
  return interval;
}

double EmpiricalCdf::count_inside(const KeyInterval& interval) const {
  if (!is_known()) return 0.0;
  const double end =
      interval.high == not_finite_key(dtype_) ? size_ : rank(position_of_key(interval.high));
  return end - (interval.low <= 1 ? zeros_ : rank(position_of_key(interval.low)));
}

double EmpiricalCdf::count_below(std::uint64_t key) const { return rank(position_of_key(key)); }

double EmpiricalCdf::sum_from(std::uint64_t key) const {
  const Position position = position_of_key(key);
  const double from = edges_[position.bin].sum_from;
  return from - position.part * (from - edges_[position.bin + 1].sum_from);
}

void EmpiricalCdf::shift(double more_below, double more_sum) {
  double least_sum = 0.0;
  for (std::size_t e = edges_.size(); e-- > 0;) {
    Edge& edge = edges_[e];
    edge.below = static_cast<float>(edge.below + more_below);
    least_sum = std::max(least_sum, edge.sum_from + more_sum);
    edge.sum_from = static_cast<float>(least_sum);
  }
}

}  // namespace lampfast
