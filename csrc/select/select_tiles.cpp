// Bounds on scores first, then exact integers, as for weights (docs/exactness.md, section 11): bins
// of sums tell the fates of most tiles; those of the bins that stay open are sorted, and only the
// ones whose scores are not apart at the cut are added up exactly.
#include "select/select_tiles.h"

#include <algorithm>
#include <limits>
#include <mutex>
#include <numeric>
#include <utility>

#include "core/compensated_sum.h"
#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/test_sizes.h"

namespace lampfast {
namespace {

constexpr double margin = error_bounds::score_from_tiles;
constexpr double bin_margin = error_bounds::score_from_bins;
constexpr double least_sum = error_bounds::least_tile_sum;
constexpr double infinity = std::numeric_limits<double>::infinity();

// Tiles are visited in chunks. Those of one are added up plainly in a bin, and so are chunks.
constexpr std::int64_t chunk = test_sizes ? 8 : 1 << 16;
static_assert(chunk <= error_bounds::most_bin_terms);
static_assert(error_bounds::most_layer_elements / (1 << 16) <= error_bounds::most_bin_merges);

// A layer of fewer tiles is sorted as a whole.
constexpr std::int64_t least_binned = test_sizes ? 4 : 1 << 13;

// Bins are of equal width in the logarithm, so that a bin's number is made of a double's first
// bits. The first bin holds all that is smaller.
constexpr int bins = test_sizes ? 16 : 4096;
constexpr int bin_bits = test_sizes ? 1 : 7;  // 2^bits bins an octave
constexpr int bin_shift = Float64::mantissa_bits - bin_bits;

// Whether a tile of one sum is certainly smaller than a tile of another.
bool is_before(double sum, double other) {
  return other >= least_sum && sum * (1.0 + margin) < other;
}

struct Candidate {
  double sum;
  std::int64_t tile;

  bool operator<(const Candidate& other) const {
    return sum < other.sum || (sum == other.sum && tile < other.tile);
  }
};

// Sets of a layer's tiles with bounds on their scores, which rise from set to set.
struct Groups {
  std::vector<double> least;
  std::vector<double> most;
  std::vector<std::int64_t> before{0};  // the weights of all earlier groups; one entry more

  void add(double lower, double upper, std::int64_t size) {
    least.push_back(least.empty() ? lower : std::max(lower, least.back()));
    most.push_back(upper);
    before.push_back(before.back() + size);
  }

  // Upper bounds that rise, too.
  void finish() {
    for (std::size_t g = most.size(); g-- > 1;) most[g - 1] = std::min(most[g - 1], most[g]);
  }
};

// The groups that are neither certain to go nor certain to stay.
struct OpenGroups {
  std::size_t begin;
  std::size_t end;
};

std::int64_t size_until(const Groups& groups, const std::vector<double>& bounds, double score,
                        bool includes_equal) {
  const auto end = includes_equal ? std::upper_bound(bounds.begin(), bounds.end(), score)
                                  : std::lower_bound(bounds.begin(), bounds.end(), score);
  return groups.before[static_cast<std::size_t>(end - bounds.begin())];
}

// The smallest non-negative double for which a predicate holds that goes on to hold; infinity if
// there is none below that.
template <class Predicate>
double first_score(const Predicate& holds) {
  std::uint64_t low = 0;
  std::uint64_t high = Float64::not_finite;
  while (low < high) {
    const std::uint64_t middle = low + (high - low) / 2;
    if (holds(Float64::value(middle))) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return Float64::value(high);
}

// What goes and what stays whichever way the open scores turn out. A group goes if all that may
// come before its last tile, that tile included, fits the budget; and it stays if what certainly
// comes before its first tile fills the budget.
std::vector<OpenGroups> cut(const std::vector<Groups>& all, std::int64_t budget) {
  const double too_many = first_score([&](double score) {
    std::int64_t size = 0;
    for (const Groups& groups : all) size += size_until(groups, groups.least, score, true);
    return size > budget;
  });
  const double enough = first_score([&](double score) {
    std::int64_t size = 0;
    for (const Groups& groups : all) size += size_until(groups, groups.most, score, false);
    return size >= budget;
  });
  std::vector<OpenGroups> open;
  for (const Groups& groups : all) {
    const auto position = [](const std::vector<double>& bounds, double score) {
      const auto at = std::lower_bound(bounds.begin(), bounds.end(), score);
      return static_cast<std::size_t>(at - bounds.begin());
    };
    const std::size_t begin = position(groups.most, too_many);
    open.push_back({begin, std::max(begin, position(groups.least, enough))});
  }
  return open;
}

// The layers of one selection: those whose tiles are compared with each other.
class Selection {
 public:
  Selection(const TiledLayers& tiled, const std::vector<std::size_t>& ids, bool by_score,
            std::int64_t budget, Fates& fates)
      : tiled_(tiled), by_score_(by_score), budget_(budget), fates_(fates) {
    for (const std::size_t id : ids) layers_.emplace_back(id);
  }

  void run() {
    survey();
    std::int64_t zeros = 0;
    for (const State& layer : layers_) zeros += layer.zeros;
    if (zeros > budget_) return take_zeros();
    budget_ -= zeros;
    narrow();
    for (const State& layer : layers_) budget_ -= layer.below_size;
    settle();
  }

  // How many weights are in tiles that are zero throughout.
  std::int64_t zeros_of_first() {
    survey();
    return layers_[0].zeros;
  }

 private:
  struct State {
    explicit State(std::size_t position) : id(position) {}

    std::size_t id;
    std::int64_t zeros = 0;  // weights in tiles of sum 0
    double largest = 0.0;
    // Tiles of smaller sums go, and larger ones stay.
    double low = 0.0;
    double high = infinity;
    std::vector<Candidate> tiles;  // those between, ascending
    std::vector<double> from;      // the sums of each of them and all larger tiles
    std::int64_t below_size = 0;   // weights of those below
    double below_largest = 0.0;
    double above_smallest = infinity;
    CompensatedSum above;
    std::vector<std::size_t> clusters;  // positions at which tiles are apart from those before
    Groups groups;
    // Exact sums of tiles, and of each tile and all larger ones, where they were needed.
    std::vector<BigUint> exact;
    std::vector<BigUint> exact_from;
    std::size_t begin = 0;  // the open tiles
    std::size_t end = 0;
  };

  const Tiling& tiling(const State& layer) const { return tiled_.tilings[layer.id]; }
  const double* sums(const State& layer) const { return tiled_.sums[layer.id].get(); }
  std::vector<Fate>& fates(const State& layer) const { return fates_[layer.id]; }
  std::int64_t size_of(const State& layer, std::int64_t tile) const {
    return tiling(layer).size_of(tile);
  }

  // Calls body(begin, end) for chunks of a layer's tiles.
  template <class Body>
  void for_each_chunk(const State& layer, const Body& body) const {
    const std::int64_t count = tiling(layer).count();
    tiled_.pool.for_each((count + chunk - 1) / chunk, count, [&](std::int64_t task, int) {
      body(task * chunk, std::min((task + 1) * chunk, count));
    });
  }

  void survey() {
    for (State& layer : layers_) {
      std::mutex mutex;
      for_each_chunk(layer, [&](std::int64_t begin, std::int64_t end) {
        std::int64_t zeros = 0;
        double largest = 0.0;
        const double* const all = sums(layer);
        tiling(layer).for_each_size(begin, end, [&](std::int64_t tile, std::int64_t size) {
          zeros += all[tile] == 0.0 ? size : 0;
          largest = std::max(largest, all[tile]);
        });
        const std::lock_guard<std::mutex> lock(mutex);
        layer.zeros += zeros;
        layer.largest = std::max(layer.largest, largest);
      });
    }
  }

  // Takes as many of the tiles of score 0 as fit.
  void take_zeros() {
    for (State& layer : layers_) {
      const std::int64_t count = tiling(layer).count();
      bool fits = true;
      tiling(layer).for_each_size(0, count, [&](std::int64_t tile, std::int64_t size) {
        if (!fits || sums(layer)[tile] != 0.0) return;
        fits = size <= budget_;
        if (!fits) return;
        budget_ -= size;
        fates(layer)[static_cast<std::size_t>(tile)] = Fate::goes;
      });
      if (!fits) return;
    }
  }

  // --- bins ---

  static std::int64_t bin_key(double sum) {
    return static_cast<std::int64_t>(bit_cast<std::uint64_t>(sum) >> bin_shift);
  }

  // The least sum of a bin, or what follows the last one.
  static double edge(const State& layer, std::int64_t bin) {
    if (bin <= 0) return 0.0;
    const std::int64_t key = bin_key(layer.largest) - (bins - 1) + bin;
    return bit_cast<double>(static_cast<std::uint64_t>(std::max<std::int64_t>(key, 0))
                            << bin_shift);
  }

  bool has_bins(const State& layer) const {
    // So far above the smallest double that every edge but the first is a normal number.
    return tiling(layer).count() >= least_binned && layer.largest > least_sum * 0x1p100;
  }

  struct Bin {
    std::int64_t size = 0;
    double sum = 0.0;
  };

  std::vector<Bin> read_bins(const State& layer) const {
    std::vector<Bin> all(bins);
    std::mutex mutex;
    const std::int64_t first = bin_key(layer.largest) - (bins - 1);
    for_each_chunk(layer, [&](std::int64_t begin, std::int64_t end) {
      std::vector<Bin> found(bins);
      const double* const values = sums(layer);
      tiling(layer).for_each_size(begin, end, [&](std::int64_t tile, std::int64_t size) {
        if (values[tile] == 0.0) return;
        const std::int64_t at = std::max<std::int64_t>(bin_key(values[tile]) - first, 0);
        Bin& bin = found[static_cast<std::size_t>(at)];
        bin.size += size;
        bin.sum += values[tile];
      });
      const std::lock_guard<std::mutex> lock(mutex);
      for (std::size_t b = 0; b < found.size(); ++b) {
        all[b].size += found[b].size;
        all[b].sum += found[b].sum;
      }
    });
    return all;
  }

  // The order of sums is open where these lie close together, and so a tile may come before some of
  // the bin below its own, but not before those of the bin below that.
  Groups groups_of_bins(const State& layer) const {
    const std::vector<Bin> all = read_bins(layer);
    std::vector<double> from(bins + 2, 0.0);
    for (std::size_t b = bins; b-- > 0;) from[b] = from[b + 1] + all[b].sum;
    Groups groups;
    for (std::size_t b = 0; b < bins; ++b) {
      const auto bin = static_cast<std::int64_t>(b);
      const double low = edge(layer, bin);
      const double high = edge(layer, bin + 1);
      const double least = by_score_ ? low / std::max(from[b > 0 ? b - 1 : 0], low) : low;
      const double most = by_score_ ? high / (high + from[b + 2]) : high;
      groups.add(low == 0.0 ? 0.0 : least * (1.0 - bin_margin), most * (1.0 + bin_margin),
                 all[b].size);
    }
    groups.finish();
    return groups;
  }

  // Collects the tiles whose fates the bins leave open, and where there are no bins, all.
  void narrow() {
    std::vector<Groups> all;
    bool has_any = false;
    for (State& layer : layers_) {
      if (has_bins(layer)) {
        has_any = true;
        all.push_back(groups_of_bins(layer));
      } else {
        collect(layer);
        all.push_back(layer.groups);
      }
    }
    if (!has_any) return;
    const std::vector<OpenGroups> open = cut(all, budget_);
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      State& layer = layers_[i];
      if (!has_bins(layer)) continue;
      const auto begin = static_cast<std::int64_t>(open[i].begin);
      const auto end = static_cast<std::int64_t>(open[i].end);
      const bool is_closed = begin == end;
      // One bin more on each side, so that the open tiles are apart from what was not collected.
      layer.low = edge(layer, is_closed ? begin : begin - 1);
      layer.high = is_closed ? layer.low : edge(layer, end + 1);
      if (is_closed && begin == bins) layer.low = layer.high = infinity;
      if (!is_closed && end + 1 >= bins) layer.high = infinity;
      collect(layer);
      if (!is_apart(layer)) {
        layer.low = 0.0;
        layer.high = infinity;
        collect(layer);
      }
    }
  }

  static bool is_apart(const State& layer) {
    if (layer.tiles.empty()) return true;
    const bool is_below =
        layer.below_largest == 0.0 || is_before(layer.below_largest, layer.tiles.front().sum);
    return is_below && is_before(layer.tiles.back().sum, layer.above_smallest);
  }

  // --- tiles ---

  // What a chunk has on both sides of the window, and inside.
  void collect_chunk(State& layer, std::int64_t begin, std::int64_t end, std::mutex& mutex) {
    std::vector<Candidate> found;
    std::int64_t below_size = 0;
    double below = 0.0;
    double smallest = infinity;
    CompensatedSum above;
    double plain = 0.0;
    int terms = 0;
    Fate* const fate = fates(layer).data();
    const double* const all = sums(layer);
    tiling(layer).for_each_size(begin, end, [&](std::int64_t tile, std::int64_t size) {
      const double sum = all[tile];
      if (sum >= layer.high) {
        fate[tile] = Fate::stays;
        smallest = std::min(smallest, sum);
        plain += sum;
        if (++terms == error_bounds::most_plain_terms) {
          above.add(std::exchange(plain, 0.0));
          terms = 0;
        }
      } else if (sum == 0.0 || sum < layer.low) {
        fate[tile] = Fate::goes;
        below_size += sum == 0.0 ? 0 : size;
        below = std::max(below, sum);
      } else {
        fate[tile] = Fate::open;
        found.push_back({sum, tile});
      }
    });
    above.add(plain);
    const std::lock_guard<std::mutex> lock(mutex);
    layer.tiles.insert(layer.tiles.end(), found.begin(), found.end());
    layer.below_size += below_size;
    layer.below_largest = std::max(layer.below_largest, below);
    layer.above_smallest = std::min(layer.above_smallest, smallest);
    layer.above.add(above);
  }

  // Collects the tiles of the window in ascending order, with their scores.
  void collect(State& layer) {
    layer.tiles.clear();
    layer.below_size = 0;
    layer.below_largest = 0.0;
    layer.above_smallest = infinity;
    layer.above = {};
    std::mutex mutex;
    for_each_chunk(layer, [&](std::int64_t begin, std::int64_t end) {
      collect_chunk(layer, begin, end, mutex);
    });
    std::sort(layer.tiles.begin(), layer.tiles.end());
    find_sums_from(layer);
    find_groups(layer);
  }

  static void find_sums_from(State& layer) {
    layer.from.resize(layer.tiles.size());
    CompensatedSum sum = layer.above;
    for (std::size_t i = layer.tiles.size(); i-- > 0;) {
      sum.add(layer.tiles[i].sum);
      layer.from[i] = sum.value();
    }
  }

  // Makes clusters of tiles whose order is open, so that the order of clusters is not.
  void find_groups(State& layer) {
    layer.clusters.clear();
    layer.groups = {};
    for (std::size_t i = 0; i < layer.tiles.size(); ++i) {
      if (i == 0 || is_before(layer.tiles[i - 1].sum, layer.tiles[i].sum)) {
        layer.clusters.push_back(i);
      }
    }
    for (std::size_t c = 0; c < layer.clusters.size(); ++c) {
      const std::size_t begin = layer.clusters[c];
      const std::size_t end = end_of(layer, c);
      const double low = layer.tiles[begin].sum;
      const double high = std::max(layer.tiles[end - 1].sum, least_sum);
      const double after = end < layer.tiles.size() ? layer.from[end] : layer.above.value();
      const double least = by_score_ ? low / layer.from[begin] : low;
      const double most = by_score_ ? high / (high + after) : high;
      std::int64_t size = 0;
      for (std::size_t i = begin; i < end; ++i) size += size_of(layer, layer.tiles[i].tile);
      layer.groups.add(low < least_sum ? 0.0 : least * (1.0 - margin), most * (1.0 + margin), size);
    }
    layer.groups.finish();
  }

  static std::size_t end_of(const State& layer, std::size_t cluster) {
    const bool is_last = cluster + 1 == layer.clusters.size();
    return is_last ? layer.tiles.size() : layer.clusters[cluster + 1];
  }

  // --- the cut ---

  void set(const State& layer, std::size_t begin, std::size_t end, Fate fate) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::int64_t tile = layer.tiles[i].tile;
      fates(layer)[static_cast<std::size_t>(tile)] = fate;
    }
  }

  void settle() {
    std::vector<Groups> all;
    for (State& layer : layers_) all.push_back(std::move(layer.groups));
    const std::vector<OpenGroups> open = cut(all, budget_);
    std::int64_t open_size = 0;
    std::int64_t smallest = std::numeric_limits<std::int64_t>::max();
    for (std::size_t i = 0; i < layers_.size(); ++i) {
      State& layer = layers_[i];
      const auto position = [&](std::size_t cluster) {
        return cluster < layer.clusters.size() ? layer.clusters[cluster] : layer.tiles.size();
      };
      layer.begin = position(open[i].begin);
      layer.end = position(open[i].end);
      set(layer, 0, layer.begin, Fate::goes);
      set(layer, layer.end, layer.tiles.size(), Fate::stays);
      budget_ -= all[i].before[open[i].begin];
      open_size += all[i].before[open[i].end] - all[i].before[open[i].begin];
      for (std::size_t t = layer.begin; t < layer.end; ++t) {
        smallest = std::min(smallest, size_of(layer, layer.tiles[t].tile));
      }
    }
    const bool all_fit = open_size <= budget_;
    if (!all_fit && smallest <= budget_) take_exactly();
    for (const State& layer : layers_) {
      set(layer, layer.begin, layer.end, all_fit ? Fate::goes : Fate::stays);
    }
  }

  // --- exactly ---

  // Takes the first open tiles, as long as they fit. They are no longer open then.
  void take_exactly() {
    std::vector<State*> heads;
    for (State& layer : layers_) {
      if (layer.begin < layer.end) {
        sort_exactly(layer);
        heads.push_back(&layer);
      }
    }
    const auto comes_later = [&](State* a, State* b) { return is_first(*b, *a); };
    std::make_heap(heads.begin(), heads.end(), comes_later);
    while (!heads.empty()) {
      std::pop_heap(heads.begin(), heads.end(), comes_later);
      State& layer = *heads.back();
      const std::int64_t size = size_of(layer, layer.tiles[layer.begin].tile);
      if (size > budget_) return;
      budget_ -= size;
      set(layer, layer.begin, layer.begin + 1, Fate::goes);
      ++layer.begin;
      if (layer.begin == layer.end) {
        heads.pop_back();
      } else {
        std::push_heap(heads.begin(), heads.end(), comes_later);
      }
    }
  }

  const BigUint& exact(State& layer, std::size_t i) const {
    layer.exact.resize(layer.tiles.size());
    if (layer.exact[i].limbs().empty()) {
      layer.exact[i] = tiled_.exact.sum_of(layer.id, layer.tiles[i].tile);
    }
    return layer.exact[i];
  }

  // Puts the open tiles of each cluster in order.
  void sort_exactly(State& layer) const {
    for (std::size_t c = 0; c < layer.clusters.size(); ++c) {
      const std::size_t begin = layer.clusters[c];
      const std::size_t end = end_of(layer, c);
      if (begin < layer.begin || begin >= layer.end || end - begin == 1) continue;
      std::vector<std::pair<BigUint, Candidate>> sorted(end - begin);
      layer.exact.resize(layer.tiles.size());
      tiled_.pool.for_each(
          static_cast<std::int64_t>(sorted.size()),
          size_of(layer, layer.tiles[begin].tile) * static_cast<std::int64_t>(sorted.size()),
          [&](std::int64_t i, int) {
            const auto at = static_cast<std::size_t>(i);
            const Candidate& tile = layer.tiles[begin + at];
            sorted[at] = {tiled_.exact.sum_of(layer.id, tile.tile), tile};
          });
      std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
        const int order = BigUint::compare(a.first, b.first);
        return order < 0 || (order == 0 && a.second.tile < b.second.tile);
      });
      for (std::size_t i = begin; i < end; ++i) {
        layer.exact[i] = std::move(sorted[i - begin].first);
        layer.tiles[i] = sorted[i - begin].second;
      }
    }
    find_sums_from(layer);
  }

  // The sum of a tile and all larger ones.
  const BigUint& exact_from(State& layer, std::size_t i) const {
    if (layer.exact_from.empty()) {
      layer.exact_from.resize(layer.end);
      BigUint sum = tiled_.exact.sum_of_staying(layer.id, fates(layer));
      for (std::size_t t = layer.end; t-- > layer.begin;) {
        sum += exact(layer, t);
        layer.exact_from[t] = sum;
      }
    }
    return layer.exact_from[i];
  }

  double score(const State& layer) const {
    const double sum = layer.tiles[layer.begin].sum;
    return by_score_ ? sum / layer.from[layer.begin] : sum;
  }

  // Whether the first open tile of one layer comes before that of another.
  bool is_first(State& a, State& b) const {
    const double least = std::min(a.tiles[a.begin].sum, b.tiles[b.begin].sum);
    if (least >= least_sum) {
      if (score(a) * (1.0 + 2.0 * margin) < score(b)) return true;
      if (score(b) * (1.0 + 2.0 * margin) < score(a)) return false;
    }
    const int order = by_score_ ? compare_scores(a, b) : compare_sums(a, b);
    return order < 0 || (order == 0 && a.id < b.id);
  }

  int compare_scores(State& a, State& b) const {
    return BigUint::compare(exact(a, a.begin).times(exact_from(b, b.begin)),
                            exact(b, b.begin).times(exact_from(a, a.begin)));
  }

  int compare_sums(State& a, State& b) const {
    const int unit_a = least_exponent_of(tiled_.layers[a.id].dtype);
    const int unit_b = least_exponent_of(tiled_.layers[b.id].dtype);
    const int unit = std::min(unit_a, unit_b);
    return BigUint::compare(exact(a, a.begin).shifted(2 * (unit_a - unit)),
                            exact(b, b.begin).shifted(2 * (unit_b - unit)));
  }

  static int least_exponent_of(Dtype dtype) {
    return with_format(dtype, [](auto format) { return decltype(format)::least_exponent; });
  }

  const TiledLayers& tiled_;
  bool by_score_;
  std::int64_t budget_;
  Fates& fates_;
  std::vector<State> layers_;
};

}  // namespace

Fates select_tiles(const TiledLayers& tiled, const SelectionSpec& spec) {
  Fates fates;
  for (const Tiling& tiling : tiled.tilings) {
    fates.emplace_back(static_cast<std::size_t>(tiling.count()), Fate::stays);
  }
  std::vector<std::size_t> ids(fates.size());
  std::iota(ids.begin(), ids.end(), std::size_t{0});
  if (spec.ranking != Ranking::per_layer) {
    Selection(tiled, ids, spec.ranking == Ranking::lamp, spec.counts[0], fates).run();
  } else {
    for (const std::size_t id : ids) Selection(tiled, {id}, false, spec.counts[id], fates).run();
  }
  return fates;
}

std::vector<std::int64_t> sizes_of_zero_tiles(const TiledLayers& tiled) {
  std::vector<std::int64_t> sizes;
  Fates fates;
  for (std::size_t id = 0; id < tiled.layers.size(); ++id) {
    sizes.push_back(Selection(tiled, {id}, false, 0, fates).zeros_of_first());
  }
  return sizes;
}

}  // namespace lampfast
