// What ranks send each other are integers, of which sums and maxima are the same in any order:
// counts as they are, and sums of squares in fixed point, with a unit so small that rounding to it
// stays within error_bounds::exchanged_sum.
#include "exchange.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>
#include <utility>

#include "core/key_format.h"
#include "core/test_sizes.h"
#include "exchange_partition.h"
#include "exchange_ties.h"
#include "exchange_words.h"

namespace lampfast {
namespace {

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
// but no more keys than an interval has.
std::size_t usual_words(const std::vector<PartitionFormat>& formats,
                        const std::vector<std::int64_t>& counts, std::size_t ranks) {
  std::size_t words = 2;  // whether it has failed, and what it was asked
  for (std::size_t p = 0; p < formats.size(); ++p) {
    const auto count = static_cast<std::uint64_t>(counts[p]);
    const KeyInterval& interval = formats[p].blank().sides.interval;
    const std::uint64_t share =
        std::min({2 * (count / ranks) + 8, count, interval.high - interval.low});
    words += formats[p].words_of_sides() + 1 + 2 * static_cast<std::size_t>(share);
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
    : sharding_(sharding), most_bins_(most_bins), communicator_(*sharding.communicator) {}

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

// The complement turns the order of keys, which are less than 2^63 or no_key, around; that of
// no_key is 0.
void Exchange::min(std::vector<std::uint64_t>& keys, const Failure& failure) {
  constexpr std::uint64_t key_bits = ~std::uint64_t{0} >> 1;
  Words words = message();
  for (const std::uint64_t key : keys) words.push_back(static_cast<std::int64_t>(~key & key_bits));
  max(words, failure);
  for (std::size_t i = 0; i < keys.size(); ++i) {
    const auto complement = static_cast<std::uint64_t>(words[header_size + i]);
    keys[i] = complement == 0 ? no_key : ~complement & key_bits;
  }
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

std::vector<KeysInside> Exchange::keys_inside(const LayerIds& ids,
                                              const std::vector<PartitionRequest>& requests,
                                              const std::vector<std::int64_t>& counts,
                                              Ask<KeysInside, PartitionRequest> ask) {
  std::vector<PartitionFormat> formats;
  std::vector<KeysInside> own;
  for (std::size_t p = 0; p < ids.size(); ++p) {
    formats.emplace_back(sharding_.layers[ids[p]], requests[p], most_bins_);
    own.push_back({formats[p].blank().sides, {}});
  }
  std::vector<KeysInside> all = own;
  const Failure failure = attempt([&] { add_own_keys(ids, requests, ask, own); });
  const std::uint64_t question = hash_of(ids, requests);
  Words words = {failure.error || failure.is_not_finite ? 1 : 0,
                 static_cast<std::int64_t>(question)};
  for (std::size_t p = 0; p < ids.size(); ++p) {
    formats[p].put_sides(own[p].sides, words);
    put_counts(own[p].keys, words);
  }
  const std::size_t usual = usual_words(formats, counts, communicator_.size());
  std::vector<Words> received;
  bool has_failed = false;
  std::uint64_t asked = 0;
  for (const std::string& bytes :
       communicator_.gather(bytes_of(words), usual * sizeof(std::int64_t))) {
    received.push_back(words_of(bytes));
    has_failed = received.back()[0] != 0 || has_failed;
    asked += static_cast<std::uint64_t>(received.back()[1]);
  }
  if (has_failed) agree(failure);
  check_question(static_cast<std::int64_t>(asked), question, communicator_.size());
  for (const Words& each : received) {
    const std::int64_t* from = each.data() + 2;
    for (std::size_t p = 0; p < ids.size(); ++p) {
      formats[p].get_sides(from, all[p].sides);
      get_counts(from, all[p].keys);
    }
  }
  return all;
}

void Exchange::add_own_keys(const LayerIds& ids, const std::vector<PartitionRequest>& requests,
                            Ask<KeysInside, PartitionRequest> ask,
                            std::vector<KeysInside>& own) const {
  const Counted here = counted(ids);
  const std::vector<KeysInside> found = ask(here.pieces, pick(requests, here.positions));
  for (std::size_t p = 0; p < found.size(); ++p) {
    if (!std::isfinite(found[p].sides.above_sum.value())) throw NotFinite();
    KeysInside& sum = own[here.positions[p]];
    sum.sides.add(found[p].sides);
    sum.keys.insert(sum.keys.end(), found[p].keys.begin(), found[p].keys.end());
  }
}

std::vector<std::uint64_t> Exchange::smallest_keys(const LayerIds& ids,
                                                   const std::vector<PartitionRequest>& requests,
                                                   Ask<std::uint64_t, PartitionRequest> ask) {
  std::vector<std::uint64_t> smallest(ids.size(), no_key);
  const Failure failure = attempt([&] {
    const Counted here = counted(ids);
    const std::vector<std::uint64_t> found = ask(here.pieces, pick(requests, here.positions));
    for (std::size_t p = 0; p < found.size(); ++p) {
      std::uint64_t& least = smallest[here.positions[p]];
      least = std::min(least, found[p]);
    }
  });
  min(smallest, failure);
  return smallest;
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
  const std::size_t usual = 1 + ids.size() * (2 + usual_limbs);
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
  std::vector<std::uint64_t> smallest;
  for (const LayerStats& stats : merged) {
    zeros.push_back(stats.zeros);
    smallest.push_back(stats.smallest);
  }
  sum(zeros, failure, hash_of(ids));
  min(smallest, {});
  for (std::size_t p = 0; p < ids.size(); ++p) {
    merged[p] = {zeros[header_size + p], smallest[p]};
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

std::vector<LayerThreshold> Exchange::of_pieces(
    const std::vector<Layer>& pieces, const std::vector<LayerThreshold>& thresholds,
    FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)> ask) {
  return thresholds_of_pieces(
      sharding_, pieces, thresholds, ask,
      [&](Words& words, const Failure& failure) { sum(words, failure, 0); });
}

}  // namespace lampfast
