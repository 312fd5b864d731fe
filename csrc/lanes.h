// Arithmetic on several elements at once, in the compilers' portable vector types.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "magnitude.h"

namespace lampfast {

constexpr int lane_count = 8;

template <class T>
struct LanesOf {
  typedef T type __attribute__((vector_size(lane_count * sizeof(T))));
};
template <class T>
using Lanes = typename LanesOf<T>::type;

template <class T>
inline void load(Lanes<T>& lanes, const T* data) {
  std::memcpy(&lanes, data, sizeof(lanes));
}

// FloatFormat::value for every lane.
template <class Format>
inline void values(Lanes<double>& result, const Lanes<typename Format::Storage>& keys) {
  using Storage = typename Format::Storage;
  if constexpr (sizeof(Storage) == 8) {
    std::memcpy(&result, &keys, sizeof(result));
  } else if constexpr (sizeof(Storage) == 4) {
    Lanes<float> narrow;
    std::memcpy(&narrow, &keys, sizeof(narrow));
    result = __builtin_convertvector(narrow, Lanes<double>);
  } else {
    const auto wide = __builtin_convertvector(keys, Lanes<std::uint32_t>);
    const Lanes<std::uint32_t> bits = wide << (23 - Format::mantissa_bits);
    Lanes<float> narrow;
    std::memcpy(&narrow, &bits, sizeof(narrow));
    narrow *= Format::rebias;
    const Lanes<float> nan = narrow * 0.0F + std::numeric_limits<float>::quiet_NaN();
    narrow = wide < std::uint32_t{Format::not_finite} ? narrow : nan;
    result = __builtin_convertvector(narrow, Lanes<double>);
  }
}

}  // namespace lampfast
