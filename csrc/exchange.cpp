// What ranks send each other are integers, of which sums and maxima are the same in any order:
// counts as they are, and sums of squares in fixed point, with a unit so small that rounding to it
// stays within error_bounds::exchanged_sum.
#include "exchange.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/error_bounds.h"
#include "core/key_format.h"
#include "core/test_sizes.h"
#include "exchange_words.h"

namespace lampfast {
namespace {

// What a message begins with: how many ranks have failed, how many met an element that is not
// finite, and a hash of what was asked, which must be the same on all ranks.
constexpr std::size_t failed = 0;
constexpr std::size_t not_finite = 1;
constexpr std::size_t question_asked = 2;
constexpr std::size_t header_size = 3;

Words message() { return Words(header_size, 0); }

std::uint64_t hash_of(const LayerIds& ids, const std::vector<TallyRequest>& requests) {
  Hash hash;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    hash.add(std::uint64_t{ids[p]}).add(requests[p].key).add(requests[p].scale);
  }
  return hash.value();
}

std::uint64_t hash_of(const LayerIds& ids, const std::vector<PartitionRequest>& requests) {
  Hash hash;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    hash.add(std::uint64_t{ids[p]}).add(requests[p].interval).add(requests[p].scale);
  }
  return hash.value();
}

std::uint64_t hash_of(const LayerIds& ids) {
  Hash hash;
  for (const std::size_t id : ids) hash.add(std::uint64_t{id});
  return hash.value();
}

// The values at these positions.
template <class T>
std::vector<T> pick(const std::vector<T>& values, const std::vector<std::size_t>& positions) {
  std::vector<T> picked;
  picked.reserve(positions.size());
  for (const std::size_t position : positions) picked.push_back(values[position]);
  return picked;
}

// Two counts in a word; neither, added up over all ranks, reaches 2^32.
void put_pairs(const std::vector<std::int64_t>& counts, Words& words) {
  for (std::size_t i = 0; i < counts.size(); i += 2) {
    const std::int64_t second = i + 1 < counts.size() ? counts[i + 1] : 0;
    words.push_back(static_cast<std::int64_t>(static_cast<std::uint64_t>(second) << 32 |
                                              static_cast<std::uint64_t>(counts[i])));
  }
}

std::vector<std::int64_t> get_pairs(std::size_t size, const std::int64_t*& from) {
  std::vector<std::int64_t> counts(size);
  for (std::size_t i = 0; i < size; i += 2) {
    const auto pair = static_cast<std::uint64_t>(*from++);
    counts[i] = static_cast<std::int64_t>(pair & 0xffffffff);
    if (i + 1 < size) counts[i + 1] = static_cast<std::int64_t>(pair >> 32);
  }
  return counts;
}

std::vector<std::int64_t> get_words(std::size_t size, const std::int64_t*& from) {
  const std::int64_t* const begin = std::exchange(from, from + size);
  return {begin, from};
}

// --- draws ---

// The bins that the histograms of all ranks are brought to: those of the widest, up to the largest
// magnitude of any, and as many octaves down as host histograms have.
struct CommonBins {
  int shift = 0;
  std::uint64_t first = 0;
  std::size_t size = 0;

  CommonBins(Dtype dtype, std::int64_t last_key, std::int64_t widest_shift)
      : shift(static_cast<int>(widest_shift)) {
    if (last_key < 0) return;  // nobody has drawn anything
    constexpr std::uint64_t octaves = test_sizes ? 2 : 40;
    const int mantissa =
        with_format(dtype, [](auto format) { return int{decltype(format)::mantissa_bits}; });
    const std::uint64_t most = octaves << (mantissa - shift);
    const std::uint64_t end = (static_cast<std::uint64_t>(last_key) >> shift) + 1;
    first = end > most ? end - most : 0;
    size = static_cast<std::size_t>(end - first);
  }

  std::vector<std::int64_t> counts_of(const LogHistogram& histogram) const {
    std::vector<std::int64_t> counts(size, 0);
    for (std::size_t b = 0; b < histogram.counts.size(); ++b) {
      const std::uint64_t bin = (histogram.first + b) >> (shift - histogram.shift);
      const std::uint64_t at = b == 0 ? first : std::max(bin, first);
      counts[static_cast<std::size_t>(at - first)] += histogram.counts[b];
    }
    return counts;
  }
};

std::int64_t last_key(const LogHistogram& histogram) {
  if (histogram.counts.empty()) return -1;
  const std::uint64_t end = histogram.first + histogram.counts.size();
  return static_cast<std::int64_t>((end << histogram.shift) - 1);
}

// What two pieces of a layer have drawn; the first may have nothing.
LogHistogram sum_of(Dtype dtype, const LogHistogram& a, const LogHistogram& b) {
  const int shift = std::max(a.drawn > 0 ? a.shift : 0, b.shift);
  const CommonBins bins(dtype, std::max(last_key(a), last_key(b)), shift);
  std::vector<std::int64_t> counts = bins.counts_of(a);
  const std::vector<std::int64_t> more = bins.counts_of(b);
  for (std::size_t i = 0; i < counts.size(); ++i) counts[i] += more[i];
  return {a.drawn + b.drawn, a.zeros + b.zeros, shift, bins.first, {counts.begin(), counts.end()}};
}

// --- partitions ---

// The bins that partitions are brought to. The more there are, the fewer rounds it takes to tell
// keys apart, but only counts are small enough for so many.
constexpr std::int64_t bins_with_sums = test_sizes ? 8 : 256;
constexpr std::int64_t bins_of_counts = test_sizes ? 8 : 512;

// What a partition of one layer sends, and in what units. The sum of a bin's squares is needed only
// where its keys are so different that their count does not tell it.
class PartitionFormat {
 public:
  // At most so many bins, which every backend has, of any rank.
  PartitionFormat(const Layer& layer, const PartitionRequest& request, std::int64_t most_bins)
      : dtype_(layer.dtype),
        scale_(request.scale),
        tracks_min_max_(request.track_min_max),
        has_pairs_(layer.size >> 32 == 0) {
    const KeyInterval& interval = request.interval;
    blank_ = Partition(interval, std::min(bins_of_counts, most_bins));
    unevenness_ = unevenness();
    if (is_by_key()) return;
    has_sums_ = !(unevenness_ <= error_bounds::most_unevenness);  // it may be NaN
    if (has_sums_) blank_ = Partition(interval, std::min(bins_with_sums, most_bins));
  }

  // Nothing found yet.
  const Partition& blank() const { return blank_; }

  // The most keys, of so many in all bins, that a bin has unless it is crowded.
  std::int64_t most_uncrowded(std::int64_t inside) const {
    if (tracks_min_max_ && !is_by_key()) return 0;
    if (is_by_key() || inside <= most_gathered) return inside;  // their keys will be known anyway
    return has_sums_ ? inside - inside / 4 : inside / 16;
  }

  bool is_by_key() const { return blank_.bin_bits == 0; }
  bool tracks_min_max() const { return tracks_min_max_; }

  void put(const Partition& found, bool is_stored, Words& words) const {
    words.insert(words.end(), {found.sides.below, found.sides.above, is_stored ? 0 : 1});
    above_format().put(found.sides.above_sum.value(), words);
    std::vector<std::int64_t> counts;
    for (const Bin& bin : found.bins) counts.push_back(bin.count);
    if (has_pairs_) {
      put_pairs(counts, words);
    } else {
      words.insert(words.end(), counts.begin(), counts.end());
    }
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      if (has_sums_) bin_format(b).put(found.bins[b].sum, words);
    }
  }

  PartitionResult get(const std::int64_t*& from) const {
    PartitionResult result{blank_, true};
    Sides& sides = result.found.sides;
    sides.below = *from++;
    sides.above = *from++;
    result.is_stored = *from++ == 0;
    sides.above_sum.add(above_format().get(from));
    std::vector<Bin>& bins = result.found.bins;
    const std::vector<std::int64_t> counts =
        has_pairs_ ? get_pairs(bins.size(), from) : get_words(bins.size(), from);
    for (std::size_t b = 0; b < bins.size(); ++b) {
      bins[b].count = counts[b];
      if (has_sums_) bins[b].sum = bin_format(b).get(from);
    }
    if (!has_sums_ && !is_by_key()) add_counted_sums(result.found);
    return result;
  }

  // Adds what a piece has, in bins that are not wider.
  void add(const Partition& found, Partition& sum) const {
    sum.sides.add(found.sides);
    const int bits = sum.bin_bits - found.bin_bits;
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      const Bin& bin = found.bins[b];
      if (bin.count == 0) continue;
      Bin& wider = sum.bins[b >> bits];
      const std::uint64_t width = std::uint64_t{1} << found.bin_bits;
      const std::uint64_t begin = (b & ((std::size_t{1} << bits) - 1)) * width;
      wider.widen(begin + bin.first, begin + std::min(bin.last, width - 1));
      wider.count += bin.count;
      wider.sum += bin.sum;
    }
  }

 private:
  // The exponent of the scaled square of a key. In a float64 layer the largest square is near 1.
  int exponent(std::uint64_t key) const {
    const double square =
        scaled_square_of(dtype_, std::clamp<std::uint64_t>(key, 1, most_key()), scale_);
    if (dtype_ == Dtype::float64 && square > 1.0) return 1;
    return square > 0.0 ? std::ilogb(square) : least_exponent;
  }
  std::uint64_t most_key() const { return not_finite_key(dtype_) - 1; }

  // How much larger, relative to it, a square may be than the smallest one of its bin. In the
  // normal range a bin is at most 2^(bin_bits - mantissa_bits) of its keys' magnitude wide; below
  // that range the first bin is the widest one.
  double unevenness() const {
    const int mantissa =
        with_format(dtype_, [](auto format) { return int{decltype(format)::mantissa_bits}; });
    const double width = 1.0 + std::ldexp(1.0, blank_.bin_bits - mantissa);
    const Squares first = squares(0);
    return std::max(first.last / first.first, width * width) - 1.0;
  }

  // The squares of a bin's smallest and largest keys.
  struct Squares {
    double first;
    double last;
  };
  Squares squares(std::size_t b) const {
    const KeyInterval& interval = blank_.sides.interval;
    const std::uint64_t begin = interval.low + (b << blank_.bin_bits);
    const std::uint64_t width = std::uint64_t{1} << blank_.bin_bits;
    const std::uint64_t end = std::min(begin + width, std::max(interval.high, begin + 1));
    return {scaled_square_of(dtype_, begin, scale_), scaled_square_of(dtype_, end - 1, scale_)};
  }

  // Takes every key of a bin for the middle of its squares, which is wrong by less than half of the
  // unevenness, of the part of all sums that lies in bins.
  void add_counted_sums(Partition& found) const {
    double inside = 0.0;
    for (std::size_t b = 0; b < found.bins.size(); ++b) {
      if (found.bins[b].count == 0) continue;
      const auto [first, last] = squares(b);
      found.bins[b].sum = static_cast<double>(found.bins[b].count) * (first + (last - first) / 2.0);
      inside += found.bins[b].sum;
    }
    const double all = inside + found.sides.above_sum.value();
    found.counted_error = inside > 0.0 ? unevenness_ * (inside / all) : 0.0;
  }

  // All that is above has at least the square of the interval's end. If a float64 layer has
  // anything there, it has its largest weight.
  FixedPoint above_format() const {
    const int least = exponent(blank_.sides.interval.high);
    const int useful = dtype_ == Dtype::float64 ? std::max(least, -64) : least;
    return {useful - precision, exponent(most_key()) + most_elements + 1};
  }

  FixedPoint bin_format(std::size_t b) const {
    const std::uint64_t begin = blank_.sides.interval.low + (b << blank_.bin_bits);
    const std::uint64_t last = begin + ((std::uint64_t{1} << blank_.bin_bits) - 1);
    return {exponent(begin) - bin_precision, exponent(last) + most_elements + 1};
  }

  // Each rank that has an element cuts off less than a unit, and each element has at least
  // 2^precision units.
  static constexpr int precision = 44;
  static constexpr int bin_precision = 36;
  static_assert(error_bounds::exchanged_sum == 0x1p-44);
  static_assert(error_bounds::exchanged_bin_sum == 0x1p-36);
  static constexpr int most_elements = 33;
  static_assert(error_bounds::most_layer_elements == std::int64_t{1} << most_elements);
  static constexpr int least_exponent =
      -900;  // of squares that matter, error_bounds::least_product

  Dtype dtype_;
  double scale_;
  bool tracks_min_max_;
  bool has_pairs_;  // whether two counts fit in a word
  Partition blank_;
  double unevenness_ = 0.0;
  bool has_sums_ = false;
};

// Finds the smallest and largest keys of crowded bins. Such a bin often holds one key only, or keys
// in a range that is far smaller than the bin. Where bins are octaves wide, many are crowded
// anyway, and only one that holds most of the keys is worth an exchange. Nor is it worth one for a
// few layers of many, which had better be narrowed together with the others.
void bound_crowded(const std::vector<PartitionFormat>& formats,
                   const std::vector<PartitionResult>& own, std::vector<PartitionResult>& results,
                   FunctionRef<void(Words&)> max) {
  const auto for_each_crowded = [&](const auto& body) {
    for (std::size_t p = 0; p < results.size(); ++p) {
      const std::vector<Bin>& bins = results[p].found.bins;
      const std::int64_t few = formats[p].most_uncrowded(results[p].found.inside());
      for (std::size_t b = 0; b < bins.size(); ++b) {
        if (bins[b].count > few) body(p, b);
      }
    }
  };
  // Keys relative to the bin's end, counted down, and relative to its begin.
  Words words = message();
  const auto last_of = [&](std::size_t p) {
    return (std::int64_t{1} << results[p].found.bin_bits) - 1;
  };
  std::size_t crowded = 0;
  std::size_t last_crowded = results.size();
  for_each_crowded([&](std::size_t p, std::size_t b) {
    if (std::exchange(last_crowded, p) != p) ++crowded;
    const Bin& bin = own[p].found.bins[b];
    const auto first = static_cast<std::int64_t>(bin.first);
    words.push_back(bin.count == 0 ? -1 : last_of(p) - first);
    words.push_back(bin.count == 0 ? -1 : static_cast<std::int64_t>(bin.last));
  });
  constexpr std::size_t most_layers_per_crowded = 4;
  const bool is_wanted =
      std::any_of(formats.begin(), formats.end(),
                  [](const PartitionFormat& format) { return format.tracks_min_max(); });
  if (crowded == 0 || (!is_wanted && crowded * most_layers_per_crowded < results.size())) return;
  max(words);
  const std::int64_t* from = words.data() + header_size;
  for_each_crowded([&](std::size_t p, std::size_t b) {
    Bin& bin = results[p].found.bins[b];
    bin.first = static_cast<std::uint64_t>(last_of(p) - *from++);
    bin.last = static_cast<std::uint64_t>(*from++);
  });
}

// --- keys ---

void put_counts(std::vector<std::uint64_t>& keys, Words& words) {
  std::sort(keys.begin(), keys.end());
  const std::size_t at = words.size();
  words.push_back(0);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    if (i == 0 || keys[i] != keys[i - 1]) {
      ++words[at];
      words.insert(words.end(), {static_cast<std::int64_t>(keys[i]), 0});
    }
    ++words.back();
  }
}

void get_counts(const std::int64_t*& from, std::vector<std::uint64_t>& keys) {
  for (std::int64_t distinct = *from++; distinct > 0; --distinct) {
    const auto key = static_cast<std::uint64_t>(*from++);
    keys.insert(keys.end(), static_cast<std::size_t>(*from++), key);
  }
}

// How many words of keys and counts a rank usually has: twice its share, as not all have the same,
// but no more keys than an interval has, nor than a layer with few candidates.
std::size_t usual_words(const std::vector<KeyRequest>& requests, std::size_t ranks) {
  std::size_t words = 0;
  for (const KeyRequest& request : requests) {
    const std::uint64_t share = 2 * (static_cast<std::uint64_t>(request.count) / ranks) + 8;
    const std::uint64_t width = request.interval.high - request.interval.low;
    words +=
        1 + 2 * static_cast<std::size_t>(std::min({share, width, std::uint64_t{most_gathered}}));
  }
  return words;
}

std::string what_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const std::exception& known) {
    const std::string what = known.what();
    return what.substr(0, what.find('\n'));  // without Python's traceback
  } catch (...) {
    return "an unknown error";
  }
}

// The row-major index in the layer of an element of a piece.
std::int64_t index_in_layer(const Piece& piece, const Layer& tensor, std::int64_t index) {
  std::int64_t result = piece.first;
  for (std::size_t axis = tensor.shape.size(); axis-- > 0;) {
    result += index % tensor.shape[axis] * piece.index_steps[axis];
    index /= tensor.shape[axis];
  }
  return result;
}

}  // namespace

Exchange::Exchange(const Sharding& sharding, std::int64_t most_bins)
    : sharding_(sharding),
      most_bins_(most_bins),
      communicator_(*sharding.communicator),
      inside_(sharding.pieces.size(), 0) {}

Exchange::Counted Exchange::counted(const LayerIds& ids) const {
  std::vector<std::size_t> position_of(sharding_.layers.size(), ids.size());
  for (std::size_t p = 0; p < ids.size(); ++p) position_of[ids[p]] = p;
  Counted counted;
  for (std::size_t i = 0; i < sharding_.pieces.size(); ++i) {
    const Piece& piece = sharding_.pieces[i];
    if (!piece.is_counted || position_of[piece.layer] == ids.size()) continue;
    counted.pieces.push_back(i);
    counted.positions.push_back(position_of[piece.layer]);
  }
  return counted;
}

void Exchange::sum(Words& words, const Failure& failure, std::uint64_t question) {
  words[failed] = failure.error ? 1 : 0;
  words[not_finite] = failure.is_not_finite ? 1 : 0;
  words[question_asked] = static_cast<std::int64_t>(question);
  communicator_.sum(words);
  if (words[failed] != 0) agree(failure);
  if (words[not_finite] != 0) throw NotFinite();
  check_question(words[question_asked], question, communicator_.size());
}

void Exchange::max(Words& words, const Failure& failure) {
  words[failed] = failure.error ? 1 : 0;
  words[not_finite] = failure.is_not_finite ? 1 : 0;
  communicator_.max(words);
  if (words[failed] != 0) agree(failure);
  if (words[not_finite] != 0) throw NotFinite();
}

void Exchange::agree(const Failure& failure) {
  constexpr std::size_t usual_size = 256;
  const std::string no_error = failure.is_not_finite ? "?" : "";
  const std::string own = failure.error ? "!" + what_of(failure.error) : no_error;
  const std::vector<std::string> all = communicator_.gather(own, usual_size);
  if (failure.error) std::rethrow_exception(failure.error);
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].empty() || all[rank] == "?") continue;
    throw std::runtime_error("rank " + std::to_string(rank) + " has failed, so that no rank has " +
                             "changed a weight: " + all[rank].substr(1));
  }
  if (std::find(all.begin(), all.end(), "?") != all.end()) throw NotFinite();
}

std::vector<std::uint64_t> Exchange::largest_keys(const LayerIds& ids, Ask<std::uint64_t> ask) {
  Words words = message();
  words.resize(header_size + ids.size(), 0);
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<std::uint64_t> found = ask(here.pieces);
    for (std::size_t p = 0; p < found.size(); ++p) {
      std::int64_t& largest = words[header_size + here.positions[p]];
      largest = std::max(largest, static_cast<std::int64_t>(found[p]));
    }
  });
  max(words, failure);
  return {words.begin() + header_size, words.end()};
}

std::vector<LogHistogram> Exchange::draw(const LayerIds& ids, Ask<LogHistogram> ask) {
  std::vector<LogHistogram> merged(ids.size());
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<LogHistogram> found = ask(here.pieces);
    for (std::size_t p = 0; p < found.size(); ++p) {
      const std::size_t at = here.positions[p];
      merged[at] = sum_of(sharding_.layers[ids[at]].dtype, merged[at], found[p]);
    }
  });
  Words extents = message();
  for (const LogHistogram& histogram : merged) {
    extents.insert(extents.end(), {last_key(histogram), histogram.shift});
  }
  extents.push_back(-most_bins_);
  max(extents, failure);
  most_bins_ = -extents.back();
  Words words = message();
  std::vector<CommonBins> bins;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    bins.emplace_back(sharding_.layers[ids[p]].dtype, extents[header_size + 2 * p],
                      extents[header_size + 2 * p + 1]);
    words.insert(words.end(), {merged[p].drawn, merged[p].zeros});
    put_pairs(bins[p].counts_of(merged[p]), words);
  }
  sum(words, {}, hash_of(ids));
  const std::int64_t* from = words.data() + header_size;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    const std::int64_t drawn = *from++;
    const std::int64_t zeros = *from++;
    const std::vector<std::int64_t> counts = get_pairs(bins[p].size, from);
    merged[p] = {drawn, zeros, bins[p].shift, bins[p].first, {counts.begin(), counts.end()}};
  }
  return merged;
}

std::vector<GroupTallies> Exchange::tally(const LayerIds& ids,
                                          const std::vector<TallyRequest>& requests,
                                          Ask<GroupTallies, TallyRequest> ask) {
  if (ids.empty()) return {};
  const FixedPoint format(-60, 36);
  std::vector<GroupTallies> merged(ids.size());
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<GroupTallies> found = ask(here.pieces, pick(requests, here.positions));
    for (std::size_t p = 0; p < found.size(); ++p) merged[here.positions[p]].add(found[p]);
  });
  Words words = message();
  for (const GroupTallies& tallies : merged) {
    for (std::size_t g = 0; g < draw_groups; ++g) {
      put_pairs({static_cast<std::int64_t>(tallies.drawn[g]),
                 static_cast<std::int64_t>(tallies.below[g])},
                words);
      format.put(tallies.above[g], words);
    }
  }
  sum(words, failure, hash_of(ids, requests));
  const std::int64_t* from = words.data() + header_size;
  for (GroupTallies& tallies : merged) {
    for (std::size_t g = 0; g < draw_groups; ++g) {
      const std::vector<std::int64_t> counts = get_pairs(2, from);
      tallies.drawn[g] = static_cast<double>(counts[0]);
      tallies.below[g] = static_cast<double>(counts[1]);
      tallies.above[g] = format.get(from);
    }
  }
  return merged;
}

std::vector<Tally> Exchange::probe(const LayerIds& ids, const std::vector<TallyRequest>& requests,
                                   Ask<Tally, TallyRequest> ask) {
  const FixedPoint format(-60, 68);
  std::vector<Tally> merged(ids.size());
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<Tally> found = ask(here.pieces, pick(requests, here.positions));
    for (std::size_t p = 0; p < found.size(); ++p) merged[here.positions[p]].add(found[p]);
  });
  Words words = message();
  for (const Tally& tally : merged) {
    words.push_back(static_cast<std::int64_t>(tally.below));
    format.put(tally.above, words);
  }
  sum(words, failure, hash_of(ids, requests));
  const std::int64_t* from = words.data() + header_size;
  for (Tally& tally : merged) {
    tally.below = static_cast<double>(*from++);
    tally.above = format.get(from);
  }
  return merged;
}

std::vector<PartitionResult> Exchange::partition(const LayerIds& ids,
                                                 const std::vector<PartitionRequest>& requests,
                                                 Ask<PartitionResult, PartitionRequest> ask) {
  std::vector<PartitionFormat> formats;
  std::vector<PartitionResult> merged;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    formats.emplace_back(sharding_.layers[ids[p]], requests[p], most_bins_);
    merged.push_back({formats[p].blank(), true});
  }
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    std::vector<PartitionRequest> asked = pick(requests, here.positions);
    for (PartitionRequest& request : asked) {
      request.least_bins = std::min(bins_of_counts, most_bins_);
      request.track_min_max = true;  // for those of crowded bins
    }
    const std::vector<PartitionResult> found = ask(here.pieces, asked);
    for (std::size_t p = 0; p < found.size(); ++p) {
      if (!std::isfinite(found[p].found.sides.above_sum.value())) throw NotFinite();
      const std::size_t position = here.positions[p];
      formats[position].add(found[p].found, merged[position].found);
      merged[position].is_stored = merged[position].is_stored && found[p].is_stored;
      inside_[here.pieces[p]] = found[p].found.inside();
    }
  });
  Words words = message();
  for (std::size_t p = 0; p < ids.size(); ++p) {
    formats[p].put(merged[p].found, merged[p].is_stored, words);
  }
  sum(words, failure, hash_of(ids, requests));
  std::vector<PartitionResult> results;
  const std::int64_t* from = words.data() + header_size;
  for (const PartitionFormat& format : formats) results.push_back(format.get(from));
  bound_crowded(formats, merged, results, [&](Words& extents) { max(extents, {}); });
  return results;
}

void Exchange::collect(
    const LayerIds& ids, const std::vector<KeyRequest>& requests,
    FunctionRef<void(const LayerIds&, const std::vector<KeyRequest>&, const KeySink&)> ask,
    const KeySink& sink) {
  if (ids.empty()) return;
  std::vector<std::vector<std::uint64_t>> own(ids.size());
  const Failure failure = attempt([&] { own = own_keys(ids, requests, ask); });
  Words words = {failure.error ? 1 : 0};
  for (std::vector<std::uint64_t>& keys : own) put_counts(keys, words);
  const std::size_t usual = 1 + usual_words(requests, communicator_.size());
  std::vector<std::vector<std::uint64_t>> keys(ids.size());
  bool has_failed = false;
  for (const std::string& bytes :
       communicator_.gather(bytes_of(words), usual * sizeof(std::int64_t))) {
    const Words received = words_of(bytes);
    const std::int64_t* from = received.data();
    has_failed = *from++ != 0 || has_failed;
    for (std::size_t p = 0; p < ids.size(); ++p) get_counts(from, keys[p]);
  }
  if (has_failed) agree(failure);
  for (std::size_t p = 0; p < ids.size(); ++p) sink(ids[p], std::move(keys[p]));
}

// The keys that this rank's pieces have of each layer.
std::vector<std::vector<std::uint64_t>> Exchange::own_keys(
    const LayerIds& ids, const std::vector<KeyRequest>& requests,
    FunctionRef<void(const LayerIds&, const std::vector<KeyRequest>&, const KeySink&)> ask) {
  const Counted here = counted(ids);
  std::vector<KeyRequest> asked = pick(requests, here.positions);
  for (std::size_t p = 0; p < asked.size(); ++p) asked[p].count = inside_[here.pieces[p]];
  std::vector<std::vector<std::uint64_t>> found(sharding_.pieces.size());
  ask(here.pieces, asked, [&](std::size_t piece, std::vector<std::uint64_t>&& keys) {
    found[piece] = std::move(keys);
  });
  std::vector<std::vector<std::uint64_t>> own(ids.size());
  for (std::size_t p = 0; p < here.pieces.size(); ++p) {
    const std::vector<std::uint64_t>& keys = found[here.pieces[p]];
    own[here.positions[p]].insert(own[here.positions[p]].end(), keys.begin(), keys.end());
  }
  return own;
}

std::vector<BigUint> Exchange::exact_sums(const LayerIds& ids,
                                          const std::vector<std::uint64_t>& keys,
                                          Ask<BigUint, std::uint64_t> ask) {
  std::vector<BigUint> own(ids.size());
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<BigUint> found = ask(here.pieces, pick(keys, here.positions));
    for (std::size_t p = 0; p < found.size(); ++p) own[here.positions[p]] += found[p];
  });
  Words words = {failure.error ? 1 : 0};
  for (const BigUint& sum : own) put_limbs(sum, words);
  constexpr std::size_t usual_limbs = 8;
  const std::size_t usual = 1 + ids.size() * (1 + usual_limbs);
  std::vector<BigUint> sums(ids.size());
  bool has_failed = false;
  for (const std::string& bytes :
       communicator_.gather(bytes_of(words), usual * sizeof(std::int64_t))) {
    const Words received = words_of(bytes);
    const std::int64_t* from = received.data();
    has_failed = *from++ != 0 || has_failed;
    for (BigUint& sum : sums) sum += get_limbs(from);
  }
  if (has_failed) agree(failure);
  return sums;
}

std::vector<LayerStats> Exchange::stats(const LayerIds& ids, Ask<LayerStats> ask) {
  std::vector<LayerStats> merged(ids.size());
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<LayerStats> found = ask(here.pieces);
    for (std::size_t p = 0; p < found.size(); ++p) merged[here.positions[p]].merge(found[p]);
  });
  Words zeros = message();
  Words smallest = message();
  for (const LayerStats& stats : merged) {
    zeros.push_back(stats.zeros);
    // The complement turns the order of keys around; that of a missing one is 0.
    smallest.push_back(static_cast<std::int64_t>(~stats.smallest & ~(std::uint64_t{1} << 63)));
  }
  sum(zeros, failure, hash_of(ids));
  max(smallest, {});
  for (std::size_t p = 0; p < ids.size(); ++p) {
    const auto complement = static_cast<std::uint64_t>(smallest[header_size + p]);
    const std::uint64_t key = ~complement & ~(std::uint64_t{1} << 63);
    merged[p] = {zeros[header_size + p], complement == 0 ? ~std::uint64_t{0} : key};
  }
  return merged;
}

std::optional<ElementIndex> Exchange::first_not_finite(
    const std::vector<Layer>& pieces,
    FunctionRef<std::optional<ElementIndex>(const LayerIds&)> ask) {
  Words words;
  const Failure failure = attempt([&] {
    std::optional<ElementIndex> first;
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      std::optional<ElementIndex> found = ask({i});
      if (!found) continue;
      const Piece& piece = sharding_.pieces[i];
      found = {piece.layer, index_in_layer(piece, pieces[i], found->index)};
      if (!first || *found < *first) first = found;
    }
    if (first) words = {static_cast<std::int64_t>(first->layer), first->index};
  });
  const std::vector<std::string> all =
      communicator_.gather(bytes_of(words), 2 * sizeof(std::int64_t));
  agree(failure);
  std::optional<ElementIndex> first;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    const Words received = words_of(all[rank]);
    if (received.empty()) continue;
    const ElementIndex found{static_cast<std::size_t>(received[0]), received[1], rank};
    if (!first || found < *first) first = found;
  }
  return first;
}

namespace {

// So many parts a round; fewer where as many rounds are needed anyway.
int bits_a_round(int bits) {
  constexpr int most = test_sizes ? 2 : 11;
  const int rounds = std::max((bits + most - 1) / most, 1);
  return (bits + rounds - 1) / rounds;
}

int bits_of(std::int64_t size) {
  int bits = 0;
  while ((size - 1) >> bits > 0) ++bits;
  return bits;
}

// The search for the first kept tie of a layer that lies in several pieces, in parts of it.
struct TieSearch {
  std::size_t layer;
  std::int64_t wanted;     // the wanted-th tie from `begin` on, from 0, is the first kept one
  bool is_in_order;        // the pieces follow each other, and are the parts
  std::size_t parts;       // how many; if they are not pieces, they have equal widths:
  int bits = 0;            // log2 of that,
  std::int64_t begin = 0;  // and the index at which they begin
  std::size_t chosen = 0;  // the part that holds the first kept tie

  // Makes parts of 2^whole_bits indices from `begin` on.
  void divide(int whole_bits) {
    const int part_bits = bits_a_round(whole_bits);
    bits = whole_bits - part_bits;
    parts = std::size_t{1} << part_bits;
  }

  void choose(const std::vector<std::int64_t>& counts) {
    chosen = 0;
    while (chosen + 1 < parts && wanted >= counts[chosen]) wanted -= counts[chosen++];
  }

  bool is_over() const { return is_in_order || bits == 0; }
};

// Finds how many ties each piece loses. The elements of a piece are in the order of the layer, so a
// piece, too, loses the first so many of its ties. In pieces that follow each other one round of
// counts tells how many; in others the index of the first kept tie is found a few bits a round, as
// by DigitSearch (cpu/tie_boundary.cpp).
class PieceThresholds {
 public:
  using CountTies = FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)>;
  using Sum = FunctionRef<void(Words&, const Failure&)>;

  PieceThresholds(const Sharding& sharding, const std::vector<Layer>& tensors,
                  const std::vector<LayerThreshold>& thresholds)
      : sharding_(sharding), thresholds_(thresholds), totals_(tensors.size(), 0) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      const std::size_t layer = sharding.pieces[i].layer;
      own_.push_back(thresholds[layer]);
      if (sharding.begins[layer].size() == 1) continue;  // it is the whole layer
      own_[i].ties = 0;
      // How many elements of the piece are pruned nobody has counted. This number is none that a
      // candidate interval beside the threshold could have decided (Stored::decides).
      own_[i].pruned = own_[i].pruned == 0 ? 0 : tensors[i].size + 1;
    }
    for (std::size_t layer = 0; layer < thresholds.size(); ++layer) {
      const std::vector<std::int64_t>& begins = sharding.begins[layer];
      if (thresholds[layer].ties == 0 || begins.size() == 1) continue;
      searches_.push_back({layer, thresholds[layer].ties, !begins.empty(), begins.size()});
      if (begins.empty()) searches_.back().divide(bits_of(sharding.layers[layer].size));
    }
  }

  std::vector<LayerThreshold> find(CountTies count_ties, Sum sum) {
    for (bool is_first = true; !searches_.empty(); is_first = false) {
      search_of_.assign(thresholds_.size(), searches_.size());
      for (std::size_t s = 0; s < searches_.size(); ++s) search_of_[searches_[s].layer] = s;
      const Failure failure = attempt([&] { count(count_ties); });
      choose(failure, sum);
      for (std::size_t i = 0; i < own_.size(); ++i) settle(i, is_first);
      go_on();
    }
    for (std::size_t i = 0; i < own_.size(); ++i) {
      if (totals_[i] > 0 && own_[i].ties == totals_[i]) lose_all(own_[i]);
    }
    return std::move(own_);
  }

 private:
  static void lose_all(LayerThreshold& threshold) {
    threshold.ties = 0;
    ++threshold.key;
  }

  // The search that concerns a piece, or null.
  const TieSearch* search(std::size_t piece) const {
    const std::size_t s = search_of_[sharding_.pieces[piece].layer];
    return s == searches_.size() ? nullptr : &searches_[s];
  }

  std::size_t part_of(const Piece& piece) const {
    const std::vector<std::int64_t>& begins = sharding_.begins[piece.layer];
    const auto next = std::upper_bound(begins.begin(), begins.end(), piece.first);
    return static_cast<std::size_t>(next - begins.begin()) - 1;
  }

  // Counts the ties of every piece by part. A replica needs them too, unless it is a part.
  void count(CountTies count_ties) {
    constexpr int any_index = 62;
    counts_.assign(own_.size(), {});
    for (std::size_t i = 0; i < own_.size(); ++i) {
      const Piece& piece = sharding_.pieces[i];
      const TieSearch* of = search(i);
      if (of == nullptr || (of->is_in_order && !piece.is_counted)) continue;
      TieRequest request{
          thresholds_[piece.layer].key, piece.first, &piece.index_steps, 0, any_index, 1};
      if (!of->is_in_order) {
        request.begin = of->begin;
        request.bits = of->bits;
        request.parts = of->parts;
      }
      counts_[i] = count_ties(i, request);
    }
  }

  // Adds up the counts of all ranks, and finds the part with the first kept tie of each layer.
  void choose(const Failure& failure, Sum sum) {
    std::vector<std::vector<std::int64_t>> counts;
    for (const TieSearch& each : searches_) counts.emplace_back(each.parts, 0);
    for (std::size_t i = 0; i < own_.size(); ++i) {
      const Piece& piece = sharding_.pieces[i];
      const TieSearch* of = search(i);
      if (of == nullptr || !piece.is_counted || failure.error) continue;
      std::vector<std::int64_t>& here = counts[search_of_[piece.layer]];
      const std::size_t first = of->is_in_order ? part_of(piece) : 0;
      for (std::size_t p = 0; p < counts_[i].size(); ++p) here[first + p] += counts_[i][p];
    }
    Words words = message();
    for (std::size_t s = 0; s < searches_.size(); ++s) {
      if (searches_[s].is_in_order) {  // a piece may have too many for half a word
        words.insert(words.end(), counts[s].begin(), counts[s].end());
      } else {
        put_pairs(counts[s], words);
      }
    }
    sum(words, failure);
    const std::int64_t* from = words.data() + header_size;
    for (TieSearch& each : searches_) {
      if (each.is_in_order) {
        each.choose({from, from + each.parts});
        from += each.parts;
      } else {
        each.choose(get_pairs(each.parts, from));
      }
    }
  }

  // Adds the ties that a piece loses before the chosen part.
  void settle(std::size_t i, bool is_first) {
    const TieSearch* of = search(i);
    if (of == nullptr) return;
    if (of->is_in_order) {
      const std::size_t part = part_of(sharding_.pieces[i]);
      if (part < of->chosen) lose_all(own_[i]);
      if (part == of->chosen) own_[i].ties = of->wanted;
      return;
    }
    for (std::size_t p = 0; p < of->parts; ++p) {
      if (is_first) totals_[i] += counts_[i][p];
      if (p < of->chosen) own_[i].ties += counts_[i][p];
    }
  }

  // Divides the chosen parts of the searches that are not over.
  void go_on() {
    const auto is_over = [](const TieSearch& each) { return each.is_over(); };
    searches_.erase(std::remove_if(searches_.begin(), searches_.end(), is_over), searches_.end());
    for (TieSearch& each : searches_) {
      each.begin += static_cast<std::int64_t>(each.chosen) << each.bits;
      each.divide(each.bits);
    }
  }

  const Sharding& sharding_;
  const std::vector<LayerThreshold>& thresholds_;
  std::vector<LayerThreshold> own_;                // by piece
  std::vector<std::int64_t> totals_;               // by piece: its ties, where a search counts all
  std::vector<TieSearch> searches_;                // those that are not over
  std::vector<std::size_t> search_of_;             // by layer
  std::vector<std::vector<std::int64_t>> counts_;  // by piece: ties in each part
};

}  // namespace

std::vector<LayerThreshold> Exchange::of_pieces(
    const std::vector<Layer>& pieces, const std::vector<LayerThreshold>& thresholds,
    FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)> ask) {
  return PieceThresholds(sharding_, pieces, thresholds)
      .find(ask, [&](Words& words, const Failure& failure) { sum(words, failure, 0); });
}

}  // namespace lampfast
