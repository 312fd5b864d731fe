// The empirical distribution of a layer's magnitudes, from a histogram of drawn elements: how many
// elements have at most a given score, and in which interval of keys scores lie.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/intervals.h"
#include "core/layer.h"
#include "core/log_histogram.h"
#include "core/selection_spec.h"

namespace lampfast {

// How many elements have at most a given score.
struct ScoreCount {
  double count = 0.0;
  double flow = 0.0;        // by how much the count grows if the logarithm of the score grows by 1
  double unevenness = 0.0;  // how far the count may be off, as elements are not spread evenly
};

// Scores are given by their logarithms. The score of an element is its LAMP score or, unless LAMP
// scores rank all layers together, its magnitude. Within a bin, elements are taken to be spread
// evenly between its ends.
class EmpiricalCdf {
 public:
  EmpiricalCdf() = default;
  EmpiricalCdf(const Layer& layer, Ranking ranking, const LogHistogram& histogram);

  // Nothing is known of a layer in which all that was drawn is zero, or as good as zero.
  bool is_known() const { return !edges_.empty(); }
  bool is_whole() const { return weight_ == 1.0; }  // whether all elements were drawn
  // Whether all elements of a bin are equal: a partition then tells all of them apart.
  bool is_tied() const { return is_tied_; }

  // Over how many units of log score what is as good as zero is taken to be spread, so that any
  // count can be solved for.
  static constexpr double zeros_reach = 32.0;
  // Where this spread ends: at the least score of all layers that are ranked together, so that the
  // zeros of one do not mix with what others have.
  void put_zeros_below(double log_score) { zeros_end_ = log_score; }

  // Bounds on the logarithms of the scores of what is not zero.
  double least_log_score() const;
  double most_log_score() const;

  ScoreCount at(double log_score) const;

  // The keys of the elements with scores between these, and of a few on either side.
  KeyInterval interval(double low_log_score, double high_log_score) const;

  // How many elements have keys in the interval, which must not begin below 1.
  double count_inside(const KeyInterval& interval) const;
  // The end of a bin that is near the score, as a key: there, no interpolation is wrong.
  std::uint64_t edge_near(double log_score) const;

  // The count below a key and the sum of the squares from there on, in units of unit()^2.
  double count_below(std::uint64_t key) const;
  double sum_from(std::uint64_t key) const;
  double unit() const { return unit_; }
  // Moves the curve to what a read has found to be true at a key.
  void shift(double more_below, double more_sum);

 private:
  // Where a bin begins.
  struct Edge {
    float magnitude;  // in units that make the largest one about 1
    float below;      // elements
    float sum_from;   // of the squares from here on

    double square() const { return double{magnitude} * magnitude; }
  };

  // A place in a bin: which part of its elements comes earlier.
  struct Position {
    std::size_t bin = 0;
    double part = 0.0;
  };

  template <class Format>
  void add_up(const LogHistogram& histogram);
  double log_score_of(const Edge& edge) const;
  bool is_reached(const Edge& edge, double score) const;
  double count_in(std::size_t bin) const {
    return double{edges_[bin + 1].below} - edges_[bin].below;
  }
  double width(std::size_t bin) const {
    return double{edges_[bin + 1].magnitude} - edges_[bin].magnitude;
  }
  // Over which width a bin's elements are spread.
  double spread(std::size_t bin) const { return is_tied_ && bin > 0 ? 0.0 : width(bin); }
  double rank(const Position& position) const {
    return edges_[position.bin].below + position.part * count_in(position.bin);
  }
  double magnitude(const Position& position) const {
    return edges_[position.bin].magnitude + position.part * spread(position.bin);
  }
  template <class IsReached>
  std::size_t bin_where(IsReached&& is_reached) const;
  Position position_at(double log_score) const;
  Position position_of_rank(double rank) const;
  Position position_of_key(std::uint64_t key) const;
  double part_at(std::size_t bin, double score) const;
  bool is_rough(std::size_t bin) const;
  std::uint64_t key_of(double magnitude) const;

  Dtype dtype_ = Dtype::float32;
  bool by_lamp_score_ = false;
  bool is_tied_ = false;
  double size_ = 0.0;
  double zeros_ = 0.0;
  double zeros_end_ = 0.0;
  double weight_ = 1.0;  // elements of the layer for each that was drawn
  double unit_ = 1.0;    // a power of two
  double log_unit_ = 0.0;
  // The first bin has all that is as good as zero; the last edge ends all.
  std::vector<Edge> edges_;
};

}  // namespace lampfast
