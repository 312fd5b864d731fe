// Equal parts of a range, and scrambled places in them: a sample is drawn from one place in each.
#pragma once

#include <algorithm>
#include <cstdint>

#include "core/host_device.h"
#include "core/uint128.h"

namespace lampfast {

// Where one of `parts` nearly equal parts of [0, size) begins; part = parts gives the end of the
// last.
LAMPFAST_HOST_DEVICE inline std::int64_t part_begin(std::int64_t size, std::int64_t parts,
                                                    std::int64_t part) {
  return size / parts * part + std::min(size % parts, part);
}

// A number in [0, end) that looks random but depends only on `seed` (one SplitMix64 step).
LAMPFAST_HOST_DEVICE inline std::int64_t scramble(std::uint64_t seed, std::int64_t end) {
  seed += 0x9e3779b97f4a7c15;
  seed = (seed ^ (seed >> 30)) * 0xbf58476d1ce4e5b9;
  seed = (seed ^ (seed >> 27)) * 0x94d049bb133111eb;
  seed ^= seed >> 31;
  return static_cast<std::int64_t>(Uint128{seed} * static_cast<std::uint64_t>(end) >> 64);
}

}  // namespace lampfast
