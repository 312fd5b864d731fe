// The error bounds that exactness rests on. Each is derived here from the sizes of the sums that it
// covers; those who make these sums assert that they stay within the sizes.
//
// A comparison of scores is decided in doubles where the bounds allow it and in exact integers
// where they do not, so a bound that is too small could give a wrong mask, and one that is too
// large sends more comparisons than necessary to the exact path. Each bound is therefore asserted
// from both sides: it covers what is derived, and by no more than a factor of eight.
#pragma once

#include <cstdint>

namespace lampfast::error_bounds {

// The relative error of one operation on doubles, rounded to nearest.
constexpr double unit_roundoff = 0x1p-53;

constexpr bool covers(double bound, double derived) {
  return bound >= derived && bound <= 8.0 * derived;
}

// --- Sums of squares ---
//
// Adding n non-negative doubles in any order and grouping, without compensation, has a relative
// error of at most n * unit_roundoff (Higham, Accuracy and Stability of Numerical Algorithms,
// section 4.2). Squares of all dtypes but float64 are exact in a double: a mantissa has at most 24
// bits.

// The most squares that may be added plainly before the result goes into a CompensatedSum: those of
// one block on the CPU (cpu/kernels/kernels.h), of one thread's share of a span on a GPU
// (cuda/work.h).
constexpr std::int64_t most_plain_terms = std::int64_t{1} << 12;

// The most terms that go into a CompensatedSum, one after the other.
constexpr std::int64_t most_compensated_terms = std::int64_t{1} << 32;

// The relative error of a CompensatedSum of squares. It has four sources:
// - the plain sums that are its terms: most_plain_terms * u;
// - the rounding of float64's squares, u, and of high + low at the end, u;
// - the compensation itself: the errors of n additions are added up in `low`, with an error that is
//   (n * u)^2 relative to the sum (Ogita, Rump, Oishi, Accurate Sum and Dot Product, 2005, theorem
//   4.1, for terms that are all non-negative).
constexpr double compensated_sum = 0x1p-40;
constexpr double compensation_error =
    static_cast<double>(most_compensated_terms) * unit_roundoff;  // of `low`, squared below
static_assert(covers(compensated_sum, static_cast<double>(most_plain_terms) * unit_roundoff +
                                          2.0 * unit_roundoff +
                                          compensation_error * compensation_error));

// The most squares that one task adds plainly to a bin: a chunk's on the CPU (cpu/chunks.h), a
// span's on a GPU (cuda/work.h); and the most such partial sums of a bin that are then added,
// plainly too.
constexpr std::int64_t most_bin_terms = std::int64_t{1} << 17;
constexpr std::int64_t most_bin_merges = std::int64_t{1} << 18;

// The relative error of a bin's sum of squares: the plain additions, and the rounding of float64's
// squares.
constexpr double bin_sum = 0x1p-34;
static_assert(covers(bin_sum,
                     static_cast<double>(most_bin_terms + most_bin_merges + 1) * unit_roundoff));

// A layer may have as many elements as its chunks and the candidates that it stores, a slab of at
// least 2^12 keys or the rest of a chunk each, make at most that many partial sums.
constexpr std::int64_t most_layer_elements = std::int64_t{1} << 34;
static_assert(most_layer_elements / most_bin_terms                           // chunks
                  + most_layer_elements / 100 * 3 / (std::int64_t{1} << 12)  // full slabs
              <= most_bin_merges);

// --- Scores ---
//
// A score is q / S: a square over a sum of squares. Comparing two of them, or one with a number,
// adds a few roundings to the errors of the sums: of the square, of a count times a square, of the
// addition of that to a sum, of a division or product, and of the product with 1 + margin.
constexpr double roundings_of_a_score = 8.0 * unit_roundoff;

// The relative error of the scores that follow from sums of this relative error, with both sides of
// a comparison counted.
constexpr double score_margin(double sum_error) { return 2.0 * (sum_error + roundings_of_a_score); }

// Where all elements that score more are known by CompensatedSums and counts of equal keys ...
constexpr double score_from_counts = 0x1p-38;
static_assert(covers(score_from_counts, score_margin(compensated_sum)));

// ... and where some of them are known by the sums of bins.
constexpr double score_from_bins = 0x1p-32;
static_assert(covers(score_from_bins, score_margin(bin_sum + compensated_sum)));

// --- The range of doubles ---

// Scores are bounded in doubles from here on; smaller ones count as 0 from below. Every score of a
// dtype with up to 32 bits is larger: squares are at least 2^-298, and a sum of up to 2^34 squares
// is below 2^(2 * 128 + 34). In a float64 layer, whose scale brings its largest weight near 1 and
// the sum of its squares to at least 1/4, a square whose score is as large as this is far from
// underflow.
constexpr double least_score = 0x1p-800;
static_assert(least_score < 0x1p-298 / 0x1p290);

// Products of a square and a sum are compared in doubles if all of them are larger than this: far
// enough above 2^-1022 that none of their digits is lost to underflow.
constexpr double least_product = 0x1p-900;
static_assert(least_product > 0x1p-1022 / unit_roundoff);

}  // namespace lampfast::error_bounds
