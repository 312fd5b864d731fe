// A float's magnitude as an ordered integer key, and the key's value and square.
//
// Clearing the sign bit of an IEEE float leaves an integer that orders as the magnitude does: zero
// is 0, and every NaN and infinity is at or above `not_finite`.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <stdexcept>

#include "core/host_device.h"
#include "core/layer.h"

namespace lampfast {

template <class To, class From>
LAMPFAST_HOST_DEVICE inline To bit_cast(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof(To));
  return to;
}

// magnitude = mantissa * 2^exponent, exactly.
struct Decomposed {
  std::uint64_t mantissa;
  int exponent;
};

constexpr float power_of_two(int exponent) {
  float power = 1.0F;
  for (int i = 0; i < exponent; ++i) power *= 2.0F;
  return power;
}

template <class StorageType, int ExponentBits, int MantissaBits, std::uint64_t NotFiniteKey>
struct FloatFormat {
  using Storage = StorageType;
  static constexpr int mantissa_bits = MantissaBits;
  static constexpr int bias = (1 << (ExponentBits - 1)) - 1;
  static constexpr int exponents = 1 << ExponentBits;
  static constexpr Storage not_finite = static_cast<Storage>(NotFiniteKey);
  static constexpr Storage magnitude_mask =
      static_cast<Storage>((Storage{1} << (ExponentBits + MantissaBits)) - 1);
  // The exponent of the last mantissa bit of subnormals, and of the smallest normal numbers.
  static constexpr int least_exponent = 1 - bias - MantissaBits;

  // 2^(127 - bias). A narrow format's bits, moved to the places that float32 has for them, stand
  // for its value divided by this. (float64 has no use for it.)
  static constexpr float rebias = bias > 127 ? 0.0F : power_of_two(127 - bias);

  LAMPFAST_HOST_DEVICE static Storage key(Storage bits) {
    return static_cast<Storage>(bits & magnitude_mask);
  }

  // The exponent of the last mantissa bit, counted from least_exponent: 0 for subnormals.
  LAMPFAST_HOST_DEVICE static int exponent_index(Storage key) {
    const int field = static_cast<int>(key >> MantissaBits);
    return field > 0 ? field - 1 : 0;
  }

  LAMPFAST_HOST_DEVICE static std::uint64_t mantissa(Storage key) {
    constexpr Storage implicit = Storage{1} << MantissaBits;
    const auto fraction = static_cast<Storage>(key & (implicit - 1));
    return key >> MantissaBits ? static_cast<std::uint64_t>(fraction | implicit) : fraction;
  }

  static Decomposed decompose(Storage key) {
    return {mantissa(key), exponent_index(key) + least_exponent};
  }

  // NaN or infinity for a key that is not finite: a sum of squares is then not finite either, which
  // is how a partition notices. Subnormals keep their value, as every thread clears FTZ and DAZ
  // (cpu/float_environment.h).
  LAMPFAST_HOST_DEVICE static double value(Storage key) {
    if constexpr (sizeof(Storage) == 8) {
      return bit_cast<double>(key);
    } else if constexpr (sizeof(Storage) == 4) {
      return static_cast<double>(bit_cast<float>(key));
    } else {
      const auto widened = static_cast<std::uint32_t>(key) << (23 - MantissaBits);
      const float finite = bit_cast<float>(widened) * rebias;
      return key < not_finite ? static_cast<double>(finite)
                              : std::numeric_limits<double>::quiet_NaN();
    }
  }
};

using Float32 = FloatFormat<std::uint32_t, 8, 23, 0x7f800000>;
using Float16 = FloatFormat<std::uint16_t, 5, 10, 0x7c00>;
using BFloat16 = FloatFormat<std::uint16_t, 8, 7, 0x7f80>;
using Float64 = FloatFormat<std::uint64_t, 11, 52, 0x7ff0000000000000>;
using Float8E4M3FN = FloatFormat<std::uint8_t, 4, 3, 0x7f>;
using Float8E5M2 = FloatFormat<std::uint8_t, 5, 2, 0x7c>;

// Calls body(Format{}) for the layer's dtype.
template <class Body>
decltype(auto) with_format(Dtype dtype, Body&& body) {
  switch (dtype) {
    case Dtype::float32:
      return body(Float32{});
    case Dtype::float16:
      return body(Float16{});
    case Dtype::bfloat16:
      return body(BFloat16{});
    case Dtype::float64:
      return body(Float64{});
    case Dtype::float8_e4m3fn:
      return body(Float8E4M3FN{});
    case Dtype::float8_e5m2:
      return body(Float8E5M2{});
    case Dtype::boolean:
      break;
  }
  throw std::invalid_argument("a layer to prune must have a floating dtype");
}

// The square of a magnitude, times scale^2. It is exact but for float64, where the scale (a power
// of two) keeps the layer's largest square within range; other dtypes have scale 1.
template <class Format>
LAMPFAST_HOST_DEVICE double scaled_square(typename Format::Storage key, double scale) {
  double value = Format::value(key);
  if constexpr (sizeof(typename Format::Storage) == 8) value *= scale;
  return value * value;
}

// Bytes per element.
inline std::int64_t item_size(Dtype dtype) {
  if (dtype == Dtype::boolean) return 1;
  return with_format(
      dtype, [](auto format) { return std::int64_t{sizeof(typename decltype(format)::Storage)}; });
}

inline std::uint64_t not_finite_key(Dtype dtype) {
  return with_format(dtype,
                     [](auto format) { return std::uint64_t{decltype(format)::not_finite}; });
}

inline double magnitude_of(Dtype dtype, std::uint64_t key) {
  return with_format(dtype, [key](auto format) {
    using Format = decltype(format);
    if (key >= Format::not_finite) return std::numeric_limits<double>::infinity();
    return Format::value(static_cast<typename Format::Storage>(key));
  });
}

inline double scaled_square_of(Dtype dtype, std::uint64_t key, double scale) {
  return with_format(dtype, [key, scale](auto format) {
    using Format = decltype(format);
    return scaled_square<Format>(static_cast<typename Format::Storage>(key), scale);
  });
}

// A finite key of about this magnitude, which must not be negative. It is rounded down, so it is
// for estimates only.
inline std::uint64_t nearest_key(Dtype dtype, double magnitude) {
  return with_format(dtype, [magnitude](auto format) -> std::uint64_t {
    using Format = decltype(format);
    if (!(magnitude > 0.0)) return 0;
    if (std::isinf(magnitude)) return Format::not_finite - 1;
    const int unit = Format::least_exponent;  // of the last mantissa bit, in subnormals
    const int index = std::max(std::ilogb(magnitude) - Format::mantissa_bits - unit, 0);
    if (index >= Format::exponents) return Format::not_finite - 1;
    const double mantissa = std::ldexp(magnitude, -(index + unit));
    const std::uint64_t key = (static_cast<std::uint64_t>(index) << Format::mantissa_bits) +
                              static_cast<std::uint64_t>(mantissa);
    return std::min<std::uint64_t>(key, Format::not_finite - 1);
  });
}

inline Decomposed decompose(Dtype dtype, std::uint64_t key) {
  return with_format(dtype, [key](auto format) {
    using Format = decltype(format);
    return Format::decompose(static_cast<typename Format::Storage>(key));
  });
}

}  // namespace lampfast
