// A compensated sum of non-negative doubles; its error bound holds for any order of adding and
// merging.
#pragma once

#include "core/host_device.h"

namespace lampfast {

// Each addition's rounding error is found exactly by TwoSum (Knuth, The Art of Computer
// Programming, volume 2, section 4.2.2) and added up in `low` (Sum2 of Ogita, Rump and Oishi,
// 2005). The relative error stays below error_bounds::compensated_sum even if each term is itself
// an uncompensated sum of up to error_bounds::most_plain_terms squares.
struct CompensatedSum {
  double high = 0.0;
  double low = 0.0;

  LAMPFAST_HOST_DEVICE void add(double term) {
    const double total = high + term;
    const double kept = total - term;
    low += (high - kept) + (term - (total - kept));
    high = total;
  }

  LAMPFAST_HOST_DEVICE void add(const CompensatedSum& other) {
    add(other.high);
    low += other.low;
  }

  LAMPFAST_HOST_DEVICE double value() const { return high + low; }
};

}  // namespace lampfast
