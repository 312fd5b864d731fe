// Bounds on scores first, then exact integers, as for weights (docs/exactness.md, section 11): bins
// of sums tell the fates of most tiles; those of the bins that stay open are sorted, and only the
// ones whose scores are not apart at the cut are added up exactly. Where layers are sharded, each
// stage ends in an exchange, and sorted are the tiles of all ranks.
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
#include "select/tile_bins.h"
#include "select/tile_sets.h"

namespace lampfast {
namespace {

constexpr double margin = error_bounds::score_from_tiles;
constexpr double least_sum = error_bounds::least_tile_sum;
constexpr double infinity = std::numeric_limits<double>::infinity();

// Tiles are visited in chunks. Those of one are added up plainly in a bin, and so are chunks.
constexpr std::int64_t chunk = test_sizes ? 8 : 1 << 16;
static_assert(chunk <= error_bounds::most_bin_terms);
static_assert(error_bounds::most_layer_elements / (1 << 16) <= error_bounds::most_bin_merges);

// How far bins go.
struct Limits {
  std::int64_t least_binned;  // a layer of fewer tiles is sorted as a whole
  std::size_t bins;
  std::int64_t most_open;  // if more tiles may be open, their bins are divided once more
};
constexpr Limits limits_alone{test_sizes ? 4 : 1 << 13, test_sizes ? 16 : 4096,
                              std::numeric_limits<std::int64_t>::max()};
// What is sorted, ranks have to tell each other.
constexpr Limits limits_of_ranks{test_sizes ? 4 : 128, test_sizes ? 16 : 256, test_sizes ? 4 : 128};

// In how many parts of a layer zeros are counted at a time.
constexpr std::int64_t zero_parts = test_sizes ? 4 : 2048;

// Whether a tile of one sum is certainly smaller than a tile of another.
bool is_before(double sum, double other) {
  return other >= least_sum && sum * (1.0 + margin) < other;
}

std::int64_t word_of(double number) {
  return static_cast<std::int64_t>(bit_cast<std::uint64_t>(number));
}

double number_of(std::int64_t word) { return bit_cast<double>(static_cast<std::uint64_t>(word)); }

// The largest of such complements is that of the smallest number.
std::int64_t complement(std::int64_t word) {
  return std::numeric_limits<std::int64_t>::max() - word;
}

// A tile by its number in the layer.
struct Candidate {
  double sum;
  std::int64_t tile;

  bool operator<(const Candidate& other) const {
    return sum < other.sum || (sum == other.sum && tile < other.tile);
  }
};

// A sum of non-negative doubles whose error is that of a CompensatedSum.
class LongSum {
 public:
  void add(double term) {
    plain_ += term;
    if (++terms_ < error_bounds::most_plain_terms) return;
    sum_.add(std::exchange(plain_, 0.0));
    terms_ = 0;
  }

  CompensatedSum total() const {
    CompensatedSum total = sum_;
    total.add(plain_);
    return total;
  }

 private:
  double plain_ = 0.0;
  int terms_ = 0;
  CompensatedSum sum_;
};

// What tiles on both sides of a window have.
struct Beside {
  std::int64_t below_size = 0;  // weights; of sums above 0
  double below_largest = 0.0;
  double above_smallest = infinity;
  CompensatedSum above;

  void add(const Beside& other) {
    below_size += other.below_size;
    below_largest = std::max(below_largest, other.below_largest);
    above_smallest = std::min(above_smallest, other.above_smallest);
    above.add(other.above);
  }
};

// A layer whose tiles are looked for.
struct State {
  std::size_t id;
  std::vector<std::size_t> pieces{};  // those that lie here
  std::int64_t pruned = 0;
  std::int64_t zeros = 0;  // weights in tiles of sum 0
  double largest = 0.0;
  double smallest = infinity;  // above 0
  TileBins bins{};
  std::int64_t first_bin = 0;  // the window in these bins
  std::int64_t end_bin = 0;
  // Tiles of smaller sums go, and larger ones stay.
  double low = 0.0;
  double high = infinity;
  Beside beside{};
  TileSets sets{};                      // bins, then clusters
  std::vector<Candidate> tiles{};       // those of the window, of all ranks, ascending
  std::vector<double> from{};           // the sums of each of them and all larger tiles
  std::vector<std::size_t> clusters{};  // positions at which tiles are apart from those before
  // Exact sums of tiles, and of each tile and all larger ones, where they were needed.
  std::vector<BigUint> exact{};
  std::vector<BigUint> exact_from{};
  std::size_t begin = 0;  // the open tiles
  std::size_t end = 0;
};

// Layers whose tiles are compared with each other, and how many weights may go.
struct Contest {
  std::vector<State*> layers;
  std::int64_t budget;
};

class Selection {
 public:
  explicit Selection(TiledLayers& tiled)
      : tiled_(tiled), limits_(tiled.exchange.is_alone() ? limits_alone : limits_of_ranks) {
    for (std::size_t id = 0; id < tiled.layers.size(); ++id) layers_.push_back({id});
    for (std::size_t p = 0; p < tiled.pieces.size(); ++p) {
      layers_[tiled.pieces[p].layer].pieces.push_back(p);
      const auto count = static_cast<std::size_t>(tiled.pieces[p].grid.count());
      fates_.emplace_back(count, Fate::stays);
    }
    survey();
  }

  // How many weights of each layer are in tiles that are zero throughout.
  std::vector<std::int64_t> zeros() const {
    std::vector<std::int64_t> sizes;
    for (const State& layer : layers_) sizes.push_back(layer.zeros);
    return sizes;
  }

  SelectedTiles run(const SelectionSpec& spec) {
    by_score_ = spec.ranking == Ranking::lamp;
    std::vector<Contest> contests = contests_of(spec);
    take_zeros(contests);
    if (tiled_.exchange.is_alone()) {  // one after the other, in the cache
      for (Contest& contest : contests) decide({&contest});
    } else {  // each exchange is for all of them
      std::vector<Contest*> all;
      for (Contest& contest : contests) all.push_back(&contest);
      decide(all);
    }
    SelectedTiles selected{std::move(fates_), {}};
    for (const State& layer : layers_) selected.pruned.push_back(layer.pruned);
    return selected;
  }

 private:
  // Decides on the tiles that are not zero.
  void decide(const std::vector<Contest*>& contests) {
    narrow(contests);
    settle(contests);
    for (const Contest* contest : contests) {
      for (State* layer : contest->layers) {
        settle_replicas(*layer);
        *layer = State{layer->id, std::move(layer->pieces), layer->pruned};  // frees the rest
      }
    }
  }

  std::vector<Contest> contests_of(const SelectionSpec& spec) {
    std::vector<Contest> contests;
    for (const std::int64_t count : spec.counts) contests.push_back({{}, count});
    for (State& layer : layers_) {
      contests[spec.ranking == Ranking::per_layer ? layer.id : 0].layers.push_back(&layer);
    }
    return contests;
  }

  const TileGrid& grid(const State& layer) const { return tiled_.grids[layer.id]; }
  std::int64_t size_of(const State& layer, std::int64_t tile) const {
    return grid(layer).size_of(tile);
  }

  // Calls body(piece, begin, end) for chunks of the tiles of a layer's pieces.
  template <class Body>
  void for_each_chunk(const State& layer, bool with_replicas, const Body& body) const {
    for (const std::size_t p : layer.pieces) {
      if (!with_replicas && !tiled_.pieces[p].is_counted) continue;
      const std::int64_t count = tiled_.pieces[p].grid.count();
      tiled_.pool.for_each((count + chunk - 1) / chunk, count, [&](std::int64_t task, int) {
        body(p, task * chunk, std::min((task + 1) * chunk, count));
      });
    }
  }

  // Calls body(tile, size, sum) for tiles of a piece, by their numbers there.
  template <class Body>
  void for_each_tile(std::size_t piece, std::int64_t begin, std::int64_t end,
                     const Body& body) const {
    const double* const sums = tiled_.sums[piece].get();
    tiled_.pieces[piece].grid.for_each_size(
        begin, end, [&](std::int64_t tile, std::int64_t size) { body(tile, size, sums[tile]); });
  }

  void survey() {
    std::vector<std::int64_t> zeros;
    std::vector<std::int64_t> extremes;
    for (State& layer : layers_) {
      std::mutex mutex;
      for_each_chunk(layer, false, [&](std::size_t piece, std::int64_t begin, std::int64_t end) {
        std::int64_t found = 0;
        std::uint64_t largest = 0;
        std::uint64_t smallest = bit_cast<std::uint64_t>(infinity) - 1;  // less 1, which skips 0
        for_each_tile(piece, begin, end, [&](std::int64_t, std::int64_t size, double sum) {
          const auto bits = bit_cast<std::uint64_t>(sum);
          found += bits == 0 ? size : 0;
          largest = std::max(largest, bits);
          smallest = std::min(smallest, bits - 1);
        });
        const std::lock_guard<std::mutex> lock(mutex);
        layer.zeros += found;
        layer.largest = std::max(layer.largest, bit_cast<double>(largest));
        layer.smallest = std::min(layer.smallest, bit_cast<double>(smallest + 1));
      });
      zeros.push_back(layer.zeros);
      extremes.insert(extremes.end(),
                      {word_of(layer.largest), complement(word_of(layer.smallest))});
    }
    tiled_.exchange.add(zeros);
    tiled_.exchange.max(extremes);
    for (State& layer : layers_) {
      layer.zeros = zeros[layer.id];
      layer.largest = number_of(extremes[2 * layer.id]);
      layer.smallest = number_of(complement(extremes[2 * layer.id + 1]));
    }
  }

  // --- zeros ---

  // A layer in which the first tile of score 0 that does not fit has a number in [begin, end).
  struct ZeroSearch {
    State* layer;
    std::int64_t budget;
    std::int64_t begin;
    std::int64_t end;

    // Parts are of 2^bits numbers.
    int bits() const {
      int found = 0;
      while ((end - begin - 1) >> found >= zero_parts) ++found;
      return found;
    }
  };

  // Takes the tiles of score 0 as long as they fit, and leaves contests whose zeros all do.
  void take_zeros(std::vector<Contest>& contests) {
    std::vector<ZeroSearch> searches;
    std::vector<Contest> left;
    for (Contest& contest : contests) {
      std::int64_t zeros = 0;
      for (const State* layer : contest.layers) zeros += layer->zeros;
      if (zeros <= contest.budget) {
        for (State* layer : contest.layers) layer->pruned = layer->zeros;
        contest.budget -= zeros;
        left.push_back(std::move(contest));
        continue;
      }
      for (State* layer : contest.layers) {
        if (layer->zeros > contest.budget) {
          searches.push_back({layer, contest.budget, 0, grid(*layer).count()});
          break;
        }
        contest.budget -= layer->zeros;
        layer->pruned = layer->zeros;
        take_zeros_before(*layer, grid(*layer).count());
      }
    }
    find_first_kept_zeros(std::move(searches));
    contests = std::move(left);
  }

  void find_first_kept_zeros(std::vector<ZeroSearch> searches) {
    for (ZeroSearch& search : searches) search.layer->pruned = search.budget;
    while (!searches.empty()) {
      std::vector<std::int64_t> counts;
      for (const ZeroSearch& search : searches) count_zeros(search, counts);
      tiled_.exchange.add(counts);
      std::vector<ZeroSearch> left;
      const std::int64_t* count = counts.data();
      for (ZeroSearch& search : searches) {
        const std::int64_t width = std::int64_t{1} << search.bits();
        std::int64_t part = 0;
        while (part + 1 < zero_parts && count[part] <= search.budget)
          search.budget -= count[part++];
        count += zero_parts;
        search.begin = std::min(search.begin + part * width, search.end);
        search.end = std::min(search.begin + width, search.end);
        if (search.end - search.begin > 1) {
          left.push_back(search);
        } else {
          search.layer->pruned -= search.budget;
          take_zeros_before(*search.layer, search.begin);
        }
      }
      searches = std::move(left);
    }
  }

  // Appends the weights of the tiles of score 0, by part.
  void count_zeros(const ZeroSearch& search, std::vector<std::int64_t>& counts) const {
    const std::size_t at = counts.size();
    counts.resize(at + static_cast<std::size_t>(zero_parts), 0);
    std::mutex mutex;
    for_each_chunk(
        *search.layer, false, [&](std::size_t piece, std::int64_t begin, std::int64_t end) {
          std::vector<std::int64_t> found(static_cast<std::size_t>(zero_parts), 0);
          const TileRange& range = tiled_.pieces[piece].range;
          const int bits = search.bits();
          for_each_tile(piece, begin, end, [&](std::int64_t tile, std::int64_t size, double sum) {
            if (sum != 0.0) return;
            const std::int64_t number = range.number_of(tile);
            if (number < search.begin || number >= search.end) return;
            found[static_cast<std::size_t>((number - search.begin) >> bits)] += size;
          });
          const std::lock_guard<std::mutex> lock(mutex);
          for (std::size_t p = 0; p < found.size(); ++p) counts[at + p] += found[p];
        });
  }

  void take_zeros_before(const State& layer, std::int64_t limit) {
    for_each_chunk(layer, true, [&](std::size_t piece, std::int64_t begin, std::int64_t end) {
      Fate* const fates = fates_[piece].data();
      const TileRange& range = tiled_.pieces[piece].range;
      for_each_tile(piece, begin, end, [&](std::int64_t tile, std::int64_t, double sum) {
        if (sum == 0.0 && range.number_of(tile) < limit) fates[tile] = Fate::goes;
      });
    });
  }

  // --- bins ---

  // Collects the tiles whose fates the bins leave open, and where there are no bins, all.
  void narrow(const std::vector<Contest*>& contests) {
    std::vector<State*> whole;
    std::vector<State*> binned;
    for (const Contest* contest : contests) {
      for (State* layer : contest->layers) {
        const bool has_bins = grid(*layer).count() >= limits_.least_binned &&
                              TileBins::are_good_up_to(layer->largest);
        (has_bins ? binned : whole).push_back(layer);
        if (!has_bins) continue;
        const double end = number_of(word_of(layer->largest) + 1);
        layer->bins = TileBins(0.0, end, layer->smallest, limits_.bins);
      }
    }
    collect(whole);
    for (std::vector<State*> open = binned; !open.empty();) {
      read_bins(open);
      for (const Contest* contest : contests) find_windows(*contest);
      open.clear();
      for (State* layer : binned) {
        if (divide_bins(*layer)) open.push_back(layer);
      }
    }
    collect(binned);
    for (std::int64_t step = 1; !binned.empty(); step *= 2) {
      const auto is_done = [](const State* layer) { return is_apart(*layer); };
      binned.erase(std::remove_if(binned.begin(), binned.end(), is_done), binned.end());
      for (State* layer : binned) widen(*layer, step);
      collect(binned);
    }
    for (Contest* contest : contests) contest->budget -= size_below(*contest);
  }

  static std::int64_t size_below(const Contest& contest) {
    std::int64_t size = 0;
    for (const State* layer : contest.layers) size += layer->beside.below_size;
    return size;
  }

  // Reads what the layers have in their bins.
  void read_bins(const std::vector<State*>& layers) {
    std::vector<std::int64_t> counts;
    std::vector<RangedSum> sums;
    for (State* layer : layers) {
      layer->beside = {};
      std::mutex mutex;
      for_each_chunk(*layer, false, [&](std::size_t piece, std::int64_t begin, std::int64_t end) {
        read_bins(*layer, piece, begin, end, mutex);
      });
      if (tiled_.exchange.is_alone()) continue;
      const TileBins& bins = layer->bins;
      for (const TileBins::Bin& bin : bins.bins) counts.push_back(bin.size);
      counts.push_back(layer->beside.below_size);
      for (std::int64_t b = 0; b < bins.count(); ++b) sums.push_back(bins.ranged_sum(b));
      const double above = layer->beside.above.value();
      sums.push_back(TileBins::ranged_above(above, bins.high(), layer->largest));
    }
    tiled_.exchange.add(counts, sums);
    const std::int64_t* count = counts.data();
    const RangedSum* sum = sums.data();
    for (State* layer : layers) {
      TileBins& bins = layer->bins;
      if (!tiled_.exchange.is_alone()) {
        for (TileBins::Bin& bin : bins.bins) bin = {*count++, (sum++)->value};
        layer->beside.below_size = *count++;
        layer->beside.above = {(sum++)->value, 0.0};
      }
      layer->sets = bins.sets(by_score_, layer->beside.above.value());
    }
  }

  void read_bins(State& layer, std::size_t piece, std::int64_t begin, std::int64_t end,
                 std::mutex& mutex) const {
    std::vector<TileBins::Bin> found(layer.bins.bins.size());
    const double low = layer.bins.low();
    const double high = layer.bins.high();
    const auto place = layer.bins.place();
    TileBins::Bin* const to = found.data();
    Beside beside;
    LongSum above;
    for_each_tile(piece, begin, end, [&](std::int64_t, std::int64_t size, double sum) {
      if (sum == 0.0) return;
      if (sum < low) {
        beside.below_size += size;
      } else if (sum >= high) {
        above.add(sum);
      } else {
        TileBins::Bin& bin = to[place(sum)];
        bin.size += size;
        bin.sum += sum;
      }
    });
    beside.above = above.total();
    const std::lock_guard<std::mutex> lock(mutex);
    layer.bins.add(found);
    layer.beside.add(beside);
  }

  // Finds the windows of the layers that have bins: what these leave open, and one bin more on each
  // side, so that the open tiles are apart from what is not collected.
  void find_windows(const Contest& contest) const {
    std::vector<const TileSets*> sets;
    for (const State* layer : contest.layers) sets.push_back(&layer->sets);
    const std::vector<OpenSets> open = cut(sets, contest.budget - size_below(contest));
    for (std::size_t i = 0; i < open.size(); ++i) {
      State& layer = *contest.layers[i];
      if (layer.bins.count() == 0) continue;
      layer.first_bin = static_cast<std::int64_t>(open[i].begin);
      layer.end_bin = static_cast<std::int64_t>(open[i].end);
      if (layer.first_bin < layer.end_bin) {
        layer.first_bin = std::max<std::int64_t>(layer.first_bin - 1, 0);
        layer.end_bin = std::min(layer.end_bin + 1, layer.bins.count());
      }
      set_window(layer);
    }
  }

  static void set_window(State& layer) {
    layer.low = layer.bins.edge(layer.first_bin);
    layer.high = layer.bins.edge(layer.end_bin);
  }

  // How many tiles a window has, but for those that are smaller than others.
  std::int64_t tiles_in_window(const State& layer) const {
    const TileGrid& of = grid(layer);
    if (layer.bins.count() == 0) return of.count();
    std::int64_t size = 0;
    for (std::int64_t b = layer.first_bin; b < layer.end_bin; ++b) {
      size += layer.bins.bins[static_cast<std::size_t>(b)].size;
    }
    return size / (of.rows().length * of.columns().length) + 1;
  }

  // Makes finer bins of a window with too many tiles, if there are any.
  bool divide_bins(State& layer) const {
    if (layer.low == layer.high || !TileBins::are_good_up_to(layer.high) ||
        tiles_in_window(layer) <= limits_.most_open) {
      return false;
    }
    TileBins finer(layer.low, layer.high, layer.smallest, limits_.bins);
    if (!finer.are_finer_than(layer.bins)) return false;
    layer.bins = std::move(finer);
    return true;
  }

  // Moves the ends of a window by so many bins, or where there are none, all the way.
  static void widen(State& layer, std::int64_t step) {
    const bool has_low = layer.first_bin > 0;
    const bool has_high = layer.end_bin < layer.bins.count();
    layer.first_bin = std::max<std::int64_t>(layer.first_bin - step, 0);
    layer.end_bin = std::min(layer.end_bin + step, layer.bins.count());
    set_window(layer);
    if (!has_low) layer.low = 0.0;
    if (!has_high) layer.high = infinity;
  }

  static bool is_apart(const State& layer) {
    if (layer.tiles.empty()) return true;
    const Beside& beside = layer.beside;
    const bool is_below =
        beside.below_largest == 0.0 || is_before(beside.below_largest, layer.tiles.front().sum);
    return is_below && is_before(layer.tiles.back().sum, beside.above_smallest);
  }

  // --- tiles ---

  // Collects the tiles of the layers' windows in ascending order, with their scores.
  void collect(const std::vector<State*>& layers) {
    for (State* layer : layers) {
      layer->tiles.clear();
      layer->beside = {};
      std::mutex mutex;
      for_each_chunk(*layer, true, [&](std::size_t piece, std::int64_t begin, std::int64_t end) {
        collect_chunk(*layer, piece, begin, end, mutex);
      });
    }
    if (!tiled_.exchange.is_alone() && !layers.empty()) exchange_tiles(layers);
    for (State* layer : layers) {
      std::sort(layer->tiles.begin(), layer->tiles.end());
      find_sums_from(*layer);
      find_clusters(*layer);
    }
  }

  // What a chunk has on both sides of the window, and inside.
  void collect_chunk(State& layer, std::size_t piece, std::int64_t begin, std::int64_t end,
                     std::mutex& mutex) {
    std::vector<Candidate> found;
    Beside beside;
    LongSum above;
    Fate* const fates = fates_[piece].data();
    const TileRange& range = tiled_.pieces[piece].range;
    for_each_tile(piece, begin, end, [&](std::int64_t tile, std::int64_t size, double sum) {
      if (sum == 0.0 || sum < layer.low) {
        fates[tile] = Fate::goes;
        beside.below_size += sum == 0.0 ? 0 : size;
        beside.below_largest = std::max(beside.below_largest, sum);
      } else if (sum >= layer.high) {
        fates[tile] = Fate::stays;
        beside.above_smallest = std::min(beside.above_smallest, sum);
        above.add(sum);
      } else {
        fates[tile] = Fate::open;
        found.push_back({sum, range.number_of(tile)});
      }
    });
    if (!tiled_.pieces[piece].is_counted) return;
    beside.above = above.total();
    const std::lock_guard<std::mutex> lock(mutex);
    layer.tiles.insert(layer.tiles.end(), found.begin(), found.end());
    layer.beside.add(beside);
  }

  // Merges what all ranks have collected.
  void exchange_tiles(const std::vector<State*>& layers) {
    std::vector<std::int64_t> sizes;
    std::vector<std::int64_t> extremes;
    std::vector<RangedSum> sums;
    Words own;
    std::size_t expected = 0;
    for (State* layer : layers) {
      const Beside& beside = layer->beside;
      sizes.push_back(beside.below_size);
      extremes.insert(extremes.end(),
                      {word_of(beside.below_largest), complement(word_of(beside.above_smallest))});
      // Where nothing goes, the window ends at 0.
      const double least =
          std::min(std::max(layer->high, layer->smallest), std::max(layer->largest, least_sum));
      sums.push_back(TileBins::ranged_above(beside.above.value(), least, layer->largest));
      own.push_back(static_cast<std::int64_t>(layer->tiles.size()));
      for (const Candidate& each : layer->tiles)
        own.insert(own.end(), {word_of(each.sum), each.tile});
      const auto open = static_cast<std::size_t>(tiles_in_window(*layer));
      expected += 1 + 2 * std::min(2 * open / tiled_.exchange.ranks() + 4, open);
      layer->tiles.clear();
    }
    tiled_.exchange.add(sizes, sums);
    tiled_.exchange.max(extremes);
    for (const Words& words : tiled_.exchange.gather(own, expected)) {
      const std::int64_t* from = words.data();
      for (State* layer : layers) {
        for (std::int64_t left = *from++; left > 0; --left, from += 2) {
          layer->tiles.push_back({number_of(from[0]), from[1]});
        }
      }
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      layers[i]->beside = {sizes[i],
                           number_of(extremes[2 * i]),
                           number_of(complement(extremes[2 * i + 1])),
                           {sums[i].value, 0.0}};
    }
  }

  static void find_sums_from(State& layer) {
    layer.from.resize(layer.tiles.size());
    CompensatedSum sum = layer.beside.above;
    for (std::size_t i = layer.tiles.size(); i-- > 0;) {
      sum.add(layer.tiles[i].sum);
      layer.from[i] = sum.value();
    }
  }

  // Makes clusters of tiles whose order is open, so that the order of clusters is not.
  void find_clusters(State& layer) const {
    layer.clusters.clear();
    layer.sets = {};
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
      const double above = layer.beside.above.value();
      const double after = end < layer.tiles.size() ? layer.from[end] : above;
      const double least = by_score_ ? low / layer.from[begin] : low;
      const double most = by_score_ ? high / (high + after) : high;
      std::int64_t size = 0;
      for (std::size_t i = begin; i < end; ++i) size += size_of(layer, layer.tiles[i].tile);
      layer.sets.add(low < least_sum ? 0.0 : least * (1.0 - margin), most * (1.0 + margin), size);
    }
    layer.sets.finish();
  }

  static std::size_t end_of(const State& layer, std::size_t cluster) {
    const bool is_last = cluster + 1 == layer.clusters.size();
    return is_last ? layer.tiles.size() : layer.clusters[cluster + 1];
  }

  // --- the cut ---

  void set(State& layer, std::size_t begin, std::size_t end, Fate fate) {
    for (std::size_t i = begin; i < end; ++i) {
      const std::int64_t number = layer.tiles[i].tile;
      if (fate == Fate::goes) layer.pruned += size_of(layer, number);
      for (const std::size_t piece : layer.pieces) {
        const std::int64_t tile = tiled_.pieces[piece].range.tile_of(number);
        if (tile >= 0) fates_[piece][static_cast<std::size_t>(tile)] = fate;
      }
    }
  }

  void settle(const std::vector<Contest*>& contests) {
    std::vector<Contest*> open;
    for (Contest* contest : contests) {
      for (State* layer : contest->layers) layer->pruned += layer->beside.below_size;
      if (is_open_after_cut(*contest)) open.push_back(contest);
    }
    sort_exactly(open);
    for (Contest* contest : open) take_exactly(*contest);
    for (const Contest* contest : contests) {
      for (State* layer : contest->layers) set(*layer, layer->begin, layer->end, Fate::stays);
    }
  }

  // Sets the fates that the bounds tell. Returns whether, of the other tiles, some fit and some do
  // not.
  bool is_open_after_cut(Contest& contest) {
    std::vector<const TileSets*> sets;
    for (const State* layer : contest.layers) sets.push_back(&layer->sets);
    const std::vector<OpenSets> open = cut(sets, contest.budget);
    std::int64_t open_size = 0;
    std::int64_t smallest = std::numeric_limits<std::int64_t>::max();
    for (std::size_t i = 0; i < open.size(); ++i) {
      State& layer = *contest.layers[i];
      const auto position = [&](std::size_t cluster) {
        return cluster < layer.clusters.size() ? layer.clusters[cluster] : layer.tiles.size();
      };
      layer.begin = position(open[i].begin);
      layer.end = position(open[i].end);
      set(layer, 0, layer.begin, Fate::goes);
      set(layer, layer.end, layer.tiles.size(), Fate::stays);
      const std::vector<std::int64_t>& before = layer.sets.before;
      contest.budget -= before[open[i].begin];
      open_size += before[open[i].end] - before[open[i].begin];
      for (std::size_t t = layer.begin; t < layer.end; ++t) {
        smallest = std::min(smallest, size_of(layer, layer.tiles[t].tile));
      }
    }
    if (open_size > contest.budget) return smallest <= contest.budget;
    for (State* layer : contest.layers) {
      set(*layer, layer->begin, layer->end, Fate::goes);
      layer->begin = layer->end;
    }
    return false;
  }

  // A replica's sums are rounded otherwise where its memory is laid out otherwise, so that a tile
  // may lie on the other side of a window's end, where it is certain what becomes of it.
  void settle_replicas(const State& layer) {
    for (const std::size_t piece : layer.pieces) {
      if (tiled_.pieces[piece].is_counted) continue;
      const double* const sums = tiled_.sums[piece].get();
      std::vector<Fate>& fates = fates_[piece];
      for (std::size_t tile = 0; tile < fates.size(); ++tile) {
        if (fates[tile] != Fate::open) continue;
        fates[tile] = sums[tile] < layer.low * (1.0 + margin) ? Fate::goes : Fate::stays;
      }
    }
  }

  // --- exactly ---

  // A tile of a layer, by its position among those that are collected.
  struct Wanted {
    State* layer;
    std::size_t at;
  };

  // Adds up exactly the tiles that lie here, and gets those of others from their ranks.
  void learn(const std::vector<Wanted>& wanted) const {
    if (wanted.empty()) return;
    std::int64_t size = 0;
    for (const Wanted& each : wanted) {
      each.layer->exact.resize(each.layer->tiles.size());
      size += size_of(*each.layer, each.layer->tiles[each.at].tile);
    }
    tiled_.pool.for_each(static_cast<std::int64_t>(wanted.size()), size, [&](std::int64_t i, int) {
      const auto [layer, at] = wanted[static_cast<std::size_t>(i)];
      for (const std::size_t piece : layer->pieces) {
        const std::int64_t tile = tiled_.pieces[piece].range.tile_of(layer->tiles[at].tile);
        if (tile < 0 || !tiled_.pieces[piece].is_counted) continue;
        layer->exact[at] = tiled_.exact.sum_of(piece, tile);
      }
    });
    if (tiled_.exchange.is_alone()) return;
    std::vector<BigUint*> sums;
    for (const auto& [layer, at] : wanted) sums.push_back(&layer->exact[at]);
    exchange_exact(sums);
  }

  // Adds up exact sums over all ranks, each of which sends those that are not 0 there.
  void exchange_exact(const std::vector<BigUint*>& sums) const {
    constexpr std::size_t usual_words = 6;
    Words own;
    for (std::size_t i = 0; i < sums.size(); ++i) {
      if (sums[i]->limbs().empty()) continue;
      own.push_back(static_cast<std::int64_t>(i));
      put_limbs(*sums[i], own);
      *sums[i] = BigUint();
    }
    const std::size_t share = 2 * sums.size() / tiled_.exchange.ranks() + 8;
    const std::size_t expected = std::min(share, sums.size()) * usual_words;
    for (const Words& words : tiled_.exchange.gather(own, expected)) {
      const std::int64_t* from = words.data();
      while (from != words.data() + words.size()) {
        const auto i = static_cast<std::size_t>(*from++);
        *sums[i] += get_limbs(from);
      }
    }
  }

  // Puts the open tiles of each cluster in order.
  void sort_exactly(const std::vector<Contest*>& contests) const {
    std::vector<Wanted> wanted;
    for_each_open_cluster(contests, [&](State& layer, std::size_t begin, std::size_t end) {
      for (std::size_t i = begin; i < end; ++i) wanted.push_back({&layer, i});
    });
    learn(wanted);
    for_each_open_cluster(contests, [](State& layer, std::size_t begin, std::size_t end) {
      sort_cluster(layer, begin, end);
    });
    for (const Contest* contest : contests) {
      for (State* layer : contest->layers) find_sums_from(*layer);
    }
  }

  // Calls body(layer, begin, end) for the clusters of several open tiles.
  template <class Body>
  static void for_each_open_cluster(const std::vector<Contest*>& contests, const Body& body) {
    for (const Contest* contest : contests) {
      for (State* layer : contest->layers) {
        for (std::size_t c = 0; c < layer->clusters.size(); ++c) {
          const std::size_t begin = layer->clusters[c];
          const std::size_t end = end_of(*layer, c);
          if (begin < layer->begin || begin >= layer->end || end - begin == 1) continue;
          body(*layer, begin, end);
        }
      }
    }
  }

  static void sort_cluster(State& layer, std::size_t begin, std::size_t end) {
    std::vector<std::pair<BigUint, Candidate>> sorted;
    for (std::size_t i = begin; i < end; ++i) {
      sorted.emplace_back(std::move(layer.exact[i]), layer.tiles[i]);
    }
    std::sort(sorted.begin(), sorted.end(), [](const auto& a, const auto& b) {
      const int order = BigUint::compare(a.first, b.first);
      return order < 0 || (order == 0 && a.second.tile < b.second.tile);
    });
    for (std::size_t i = begin; i < end; ++i) {
      layer.exact[i] = std::move(sorted[i - begin].first);
      layer.tiles[i] = sorted[i - begin].second;
    }
  }

  // Takes the first open tiles, as long as they fit. They are no longer open then.
  void take_exactly(Contest& contest) {
    std::vector<State*> heads;
    for (State* layer : contest.layers) {
      if (layer->begin < layer->end) heads.push_back(layer);
    }
    const std::vector<State*> all = heads;
    const auto comes_later = [&](State* a, State* b) { return is_first(all, *b, *a); };
    std::make_heap(heads.begin(), heads.end(), comes_later);
    while (!heads.empty()) {
      std::pop_heap(heads.begin(), heads.end(), comes_later);
      State& layer = *heads.back();
      const std::int64_t size = size_of(layer, layer.tiles[layer.begin].tile);
      if (size > contest.budget) return;
      contest.budget -= size;
      set(layer, layer.begin, layer.begin + 1, Fate::goes);
      ++layer.begin;
      if (layer.begin == layer.end) {
        heads.pop_back();
      } else {
        std::push_heap(heads.begin(), heads.end(), comes_later);
      }
    }
  }

  double score(const State& layer) const {
    const double sum = layer.tiles[layer.begin].sum;
    return by_score_ ? sum / layer.from[layer.begin] : sum;
  }

  // Whether the first open tile of one layer comes before that of another, of all that are
  // compared.
  bool is_first(const std::vector<State*>& all, State& a, State& b) const {
    const double least = std::min(a.tiles[a.begin].sum, b.tiles[b.begin].sum);
    if (least >= least_sum) {
      if (score(a) * (1.0 + 2.0 * margin) < score(b)) return true;
      if (score(b) * (1.0 + 2.0 * margin) < score(a)) return false;
    }
    // An exchange costs more than sums that are not needed in the end.
    if (tiled_.exchange.is_alone()) {
      learn_exactly({&a, &b}, 1);
    } else {
      learn_exactly(all, std::numeric_limits<std::size_t>::max());
    }
    const int order = by_score_ ? compare_scores(a, b) : compare_sums(a, b);
    return order < 0 || (order == 0 && a.id < b.id);
  }

  // Learns the exact sums of so many of the first open tiles, and if they are compared by scores,
  // those of all and what is larger.
  void learn_exactly(const std::vector<State*>& layers, std::size_t most) const {
    std::vector<Wanted> wanted;
    std::vector<State*> without_sums;
    for (State* layer : layers) {
      layer->exact.resize(layer->tiles.size());
      const bool needs_all = by_score_ && layer->exact_from.empty();
      const std::size_t left = layer->end - layer->begin;
      const std::size_t end = layer->begin + (needs_all ? left : std::min(left, most));
      for (std::size_t i = layer->begin; i < end; ++i) {
        if (layer->exact[i].limbs().empty()) wanted.push_back({layer, i});
      }
      if (needs_all) without_sums.push_back(layer);
    }
    learn(wanted);
    if (!without_sums.empty()) learn_sums_from(without_sums);
  }

  // The exact sums of each open tile and all larger ones.
  void learn_sums_from(const std::vector<State*>& layers) const {
    std::vector<BigUint> staying(layers.size());
    for (std::size_t i = 0; i < layers.size(); ++i) {
      for (const std::size_t piece : layers[i]->pieces) {
        if (!tiled_.pieces[piece].is_counted) continue;
        staying[i] += tiled_.exact.sum_of_staying(piece, fates_[piece]);
      }
    }
    if (!tiled_.exchange.is_alone()) {
      std::vector<BigUint*> sums;
      for (BigUint& sum : staying) sums.push_back(&sum);
      exchange_exact(sums);
    }
    for (std::size_t i = 0; i < layers.size(); ++i) {
      State& layer = *layers[i];
      layer.exact_from.resize(layer.end);
      for (std::size_t t = layer.end; t-- > layer.begin;) {
        staying[i] += layer.exact[t];
        layer.exact_from[t] = staying[i];
      }
    }
  }

  static int compare_scores(const State& a, const State& b) {
    return BigUint::compare(a.exact[a.begin].times(b.exact_from[b.begin]),
                            b.exact[b.begin].times(a.exact_from[a.begin]));
  }

  int compare_sums(const State& a, const State& b) const {
    const int unit_a = least_exponent_of(tiled_.layers[a.id].dtype);
    const int unit_b = least_exponent_of(tiled_.layers[b.id].dtype);
    const int unit = std::min(unit_a, unit_b);
    return BigUint::compare(a.exact[a.begin].shifted(2 * (unit_a - unit)),
                            b.exact[b.begin].shifted(2 * (unit_b - unit)));
  }

  static int least_exponent_of(Dtype dtype) {
    return with_format(dtype, [](auto format) { return decltype(format)::least_exponent; });
  }

  TiledLayers& tiled_;
  Limits limits_;
  bool by_score_ = false;
  Fates fates_;
  std::vector<State> layers_;
};

}  // namespace

SelectedTiles select_tiles(TiledLayers& tiled, const SelectionSpec& spec) {
  return Selection(tiled).run(spec);
}

std::vector<std::int64_t> sizes_of_zero_tiles(TiledLayers& tiled) {
  return Selection(tiled).zeros();
}

}  // namespace lampfast
