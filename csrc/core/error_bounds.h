// The error bounds that exactness rests on. Each is derived here from the sizes of the sums that it
// covers; the code that computes these sums asserts that they stay within those sizes.
//
// A comparison of scores is decided in doubles where the bounds allow it and in exact integers
// where they do not, so a bound that is too small could give a wrong mask, and one that is too
// large sends more comparisons than necessary to the exact path. Each bound is therefore asserted
// from both sides: it is at least the derived error, and at most eight times that.
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

// The most squares that are added without compensation before the result goes into a
// CompensatedSum: those of one block on the CPU (cpu/kernels/kernels.h), or of one thread's share
// of a span on a GPU (cuda/work.h).
constexpr std::int64_t most_plain_terms = std::int64_t{1} << 12;

// Squares of bfloat16 are added in float32 first (cpu/kernels/registers_avx2.inl), where that is
// exact. Magnitudes whose last mantissa bit is 2^e or larger are multiples of 2^e, so that their
// squares and the sums of these are multiples of 2^(2e). A float32 can be every such multiple up to
// 2^(2e + float32_digits): an addition with an exact result of at most that is not rounded. Beyond
// it, the rounded result is at least that bound, and so are all later sums, since the terms are not
// negative. A sum below the bound has therefore not been rounded anywhere.
constexpr int float32_digits = 24;
constexpr int least_float32_exponent = -149;
// The exponents e for which the unit 2^(2e) and the bound are float32 numbers.
constexpr int least_exponent_in_float32 = -74;
constexpr int most_exponent_in_float32 = 51;
static_assert(2 * least_exponent_in_float32 >= least_float32_exponent);
static_assert(2 * most_exponent_in_float32 + float32_digits <= 127);

// The most terms that are added to one CompensatedSum.
constexpr std::int64_t most_compensated_terms = std::int64_t{1} << 32;

// The relative error of a CompensatedSum of squares. It has five sources:
// - the uncompensated sums that are its terms: most_plain_terms * u;
// - the rounding of float64's squares, u, and of high + low at the end, u (of codes and scales,
// whose
//   blocks have half as many terms, that of the squared scale and its product too);
// - the compensation itself: the errors of n additions are added up in `low`, with an error that is
//   (n * u)^2 relative to the sum (Ogita, Rump, Oishi, Accurate Sum and Dot Product, 2005, theorem
//   4.1, for terms that are all non-negative).
constexpr double compensated_sum = 0x1p-40;
constexpr double compensation_error =
    static_cast<double>(most_compensated_terms) * unit_roundoff;  // of `low`, squared below
// - where ranks exchange their sums (exchange_partition.h): exchanged_sum, what each cuts off to
//   send its own, and at most 32 roundings when what was sent is put together.
constexpr double exchanged_sum = 0x1p-44;
constexpr double exchange_error = exchanged_sum + 32.0 * unit_roundoff;
static_assert(covers(compensated_sum,
                     static_cast<double>(most_plain_terms) * unit_roundoff + 2.0 * unit_roundoff +
                         compensation_error * compensation_error + exchange_error));

// A bin's sum is added up without compensation, in two steps. One task (a chunk on the CPU,
// cpu/chunks.h; a span on a GPU, cuda/work.h) adds at most most_bin_terms squares, and then at most
// most_bin_merges such partial sums are added.
constexpr std::int64_t most_bin_terms = std::int64_t{1} << 17;
constexpr std::int64_t most_bin_merges = std::int64_t{1} << 19;

// The relative error of a bin's sum of squares: from these additions, from rounding the squares of
// float64, and from an exchange between ranks.
constexpr double bin_sum = 0x1p-33;
constexpr double exchanged_bin_sum = 0x1p-36;
constexpr double bin_exchange_error = exchanged_bin_sum + 32.0 * unit_roundoff;
static_assert(covers(bin_sum,
                     static_cast<double>(most_bin_terms + most_bin_merges + 1) * unit_roundoff +
                         bin_exchange_error));

// The most elements that a layer may have, so that a bin has at most most_bin_merges partial sums.
// Those who make the sums assert it (cpu/partition.cpp, cuda/work.h).
constexpr std::int64_t most_layer_elements = std::int64_t{1} << 33;

// --- Scores ---
// A score is q / S: a square over a sum of squares. Comparing two scores, or a score with a number,
// adds a few roundings to the errors of the sums: in the square, in a count times a square, in
// adding that to a sum, in a division or product, and in the product with 1 + margin.
constexpr double roundings_of_a_score = 8.0 * unit_roundoff;

// The relative margin within which a comparison of two scores is undecided if their sums have this
// relative error; both sides count.
constexpr double score_margin(double sum_error) { return 2.0 * (sum_error + roundings_of_a_score); }

// The margin if all elements that score more are known from CompensatedSums and key counts ...
constexpr double score_from_counts = 0x1p-38;
static_assert(covers(score_from_counts, score_margin(compensated_sum)));

// ... and if some of them are known only from the sums of bins.
constexpr double score_from_bins = 0x1p-31;
static_assert(covers(score_from_bins, score_margin(bin_sum + compensated_sum)));

// Ranks that have exchanged only the counts of bins take every square of a bin for the middle of
// its smallest and its largest one. Let u be how much larger, relative to it, the largest one may
// be. Then the sum of bins is wrong by at most u / 2 of itself; so is each of the sums above an
// element, of which a part f lies in bins, by f * u / 2. f is largest for the first bin, so that
// score_margin of f * u, twice what is needed, covers the scores of all bins. u is small enough for
// 1 + 2e to be at least 1 / (1 - e), where e = f * u.
constexpr double most_unevenness = 0x1p-3;
static_assert((1.0 + 2.0 * most_unevenness) * (1.0 - most_unevenness) >= 1.0);

// --- Tiles (core/tiling.h) ---
//
// A tile's sum of squares is a CompensatedSum, or at most most_plain_terms squares, and what is
// above a tile is a CompensatedSum of such sums.
constexpr double tiles_above = 0x1p-39;
static_assert(covers(tiles_above, 2.0 * compensated_sum));

// The margin of a score of tiles, which is also more than the relative distance within which the
// order of two tiles is open: both of their sums' errors.
constexpr double score_from_tiles = 0x1p-37;
static_assert(covers(score_from_tiles, score_margin(compensated_sum + tiles_above)));
static_assert(score_from_tiles > 2.0 * compensated_sum * (1.0 + compensated_sum));

// Where a scale could make squares underflow, those above 0 are at least this. A sum of up to 2^33
// of them is then wrong by less than 2^-80 of itself if it is at least least_tile_sum; smaller ones
// are only known to be above 0.
constexpr double least_tile_square = 0x1p-1022;
constexpr double least_tile_sum = 0x1p-900;
static_assert(least_tile_square * static_cast<double>(most_layer_elements) <
              least_tile_sum * 0x1p-80);
static_assert(least_tile_sum < 0x1p-298);  // of dtypes with up to 32 bits

// --- The range of doubles ---

// The smallest score that the bounds in doubles tell from others; smaller ones are only known to be
// at least 0. Every score above 0 of a dtype with up to 32 bits is larger than this: squares are at
// least 2^-298, and a sum of up to 2^34 squares is below 2^(2 * 128 + 34). A float64 layer is
// scaled so that its largest weight is near 1 and the sum of its squares at least 1/4; a square
// with this score is then far from underflow.
// Products of codes and scales (core/block_scales.h) are not scaled: their squares are from 2^-330
// to 2^288.
constexpr double least_score = 0x1p-800;
static_assert(least_score < 0x1p-298 / 0x1p290);
static_assert(least_score < 0x1p-330 / 0x1p322);

// A square times a sum is compared with another in doubles only if the squares and the products are
// all larger than this: so far above 2^-1022 that underflow takes none of their digits.
constexpr double least_product = 0x1p-900;
static_assert(least_product < 0x1p-330 * 0x1p-330);  // of codes and scales
static_assert(least_product > 0x1p-1022 / unit_roundoff);

}  // namespace lampfast::error_bounds
