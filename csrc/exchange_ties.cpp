// Counts in parts of a layer, added up over all ranks, tell in which part its first kept tie lies.
#include "exchange_ties.h"

#include <algorithm>
#include <utility>

#include "core/test_sizes.h"

namespace lampfast {
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

std::vector<LayerThreshold> thresholds_of_pieces(
    const Sharding& sharding, const std::vector<Layer>& pieces,
    const std::vector<LayerThreshold>& thresholds,
    FunctionRef<std::vector<std::int64_t>(std::size_t, const TieRequest&)> count,
    FunctionRef<void(Words&, const Failure&)> sum) {
  return PieceThresholds(sharding, pieces, thresholds).find(count, sum);
}

}  // namespace lampfast
