// What kernels and device functions use of CUDA (qualifiers, vector types, intrinsics, atomic
// operations), for g++.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "grid.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ __inline__ __attribute__((__always_inline__))
#define __launch_bounds__(...)
#define __shared__ static thread_local  // the blocks of an OS thread run one after another

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct alignas(16) ulonglong2 {
  unsigned long long x, y;
};

inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

namespace emulator {

template <class T, class... Types>
constexpr bool one_of = (std::is_same_v<T, Types> || ...);

template <class T>
constexpr bool atomic_integer = one_of<T, int, unsigned, unsigned long long>;
template <class T>
constexpr bool atomic_number = atomic_integer<T> || one_of<T, float, double>;

template <class T>
struct Identity {
  using Type = T;
};

template <class T>
using Same = typename Identity<T>::Type;  // a parameter that converts as if T were not deduced

template <class To, class From>
To bits_of(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To bits;
  std::memcpy(&bits, &value, sizeof(To));
  return bits;
}

inline constexpr char in_syncthreads[] = "__syncthreads";
inline constexpr char in_syncthreads_or[] = "__syncthreads_or";
inline constexpr char in_syncthreads_count[] = "__syncthreads_count";
inline constexpr char in_syncwarp[] = "__syncwarp";
inline constexpr char in_ballot[] = "__ballot_sync";
inline constexpr char in_any[] = "__any_sync";
inline constexpr char in_all[] = "__all_sync";
inline constexpr char in_shuffle[] = "a shuffle";

inline Block& block() {
  if (running_block == nullptr) throw std::logic_error("only a kernel has threads to meet");
  return *running_block;
}

// Called before anything that other threads can see, so that they sometimes come first.
inline void hesitate() {
  if (running_block != nullptr && running_block->random().below(4) == 0) running_block->yield();
}

// Misaligned addresses work on x86 but are errors on a GPU.
template <class T>
T* aligned(T* address) {
  if (reinterpret_cast<std::uintptr_t>(address) % sizeof(T) == 0) return address;
  throw std::logic_error("a kernel's address is not aligned to what it reads or writes there");
}

template <class T, class Change>
T update(T* address, Change&& change) {
  hesitate();
  const T old = *aligned(address);
  *address = change(old);
  return old;
}

template <class T>
T sum(T a, T b) {
  if constexpr (std::is_same_v<T, int>) {  // wraps on a GPU
    return static_cast<int>(static_cast<unsigned>(a) + static_cast<unsigned>(b));
  } else {
    return a + b;
  }
}

// The lanes among which a shuffle of this width moves values.
struct Section {
  explicit Section(int width) : size(static_cast<unsigned>(width)) {
    const bool is_power = width > 0 && width <= warpSize && (width & (width - 1)) == 0;
    if (!is_power) throw std::logic_error("a shuffle's width must be a power of two up to 32");
  }

  unsigned size;
  unsigned lane = block().lane();
  unsigned first = lane & ~(size - 1);
  unsigned end = first + size;
};

template <class T>
T shuffle(unsigned mask, T value, unsigned source) {
  static_assert(std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8));
  using Bits = std::conditional_t<sizeof(T) == 4, std::uint32_t, std::uint64_t>;
  const std::uint64_t got = block().meet_warp(in_shuffle, mask, bits_of<Bits>(value), source);
  return bits_of<T>(static_cast<Bits>(got));
}

template <class T>
const T* loadable(const T* address) {
  static_assert(std::is_arithmetic_v<T> || one_of<T, uint2, uint4, ulonglong2>);
  return aligned(address);
}

}  // namespace emulator

inline void __syncthreads() { emulator::block().meet_block(emulator::in_syncthreads, false); }

inline int __syncthreads_or(int vote) {
  return emulator::block().meet_block(emulator::in_syncthreads_or, vote != 0) != 0;
}

inline int __syncthreads_count(int vote) {
  return emulator::block().meet_block(emulator::in_syncthreads_count, vote != 0);
}

inline void __syncwarp(unsigned mask = ~0U) {
  emulator::block().meet_warp(emulator::in_syncwarp, mask, 0);
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  return static_cast<unsigned>(emulator::block().meet_warp(emulator::in_ballot, mask, vote != 0));
}

inline int __any_sync(unsigned mask, int vote) {
  return emulator::block().meet_warp(emulator::in_any, mask, vote != 0) != 0;
}

inline int __all_sync(unsigned mask, int vote) {
  return emulator::block().meet_warp(emulator::in_all, mask, vote == 0) == 0;
}

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const emulator::Section in(width);
  return emulator::shuffle(mask, value, in.first + (static_cast<unsigned>(source) & (in.size - 1)));
}

template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const emulator::Section in(width);
  return emulator::shuffle(mask, value, in.lane < in.first + delta ? in.lane : in.lane - delta);
}

template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  const emulator::Section in(width);
  return emulator::shuffle(mask, value, in.lane + delta < in.end ? in.lane + delta : in.lane);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int flipped, int width = warpSize) {
  const emulator::Section in(width);
  const unsigned source = in.lane ^ static_cast<unsigned>(flipped);
  return emulator::shuffle(mask, value, source < in.end ? source : in.lane);
}

inline void __threadfence() { emulator::hesitate(); }
inline void __threadfence_block() { emulator::hesitate(); }

inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __ffsll(long long value) { return __builtin_ffsll(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}
inline int __clzll(long long value) {
  return value == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(value));
}

inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
  __extension__ using Wide = unsigned __int128;
  return static_cast<unsigned long long>(Wide{a} * b >> 64);
}

inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline long long __double_as_longlong(double value) { return emulator::bits_of<long long>(value); }
inline double __longlong_as_double(long long value) { return emulator::bits_of<double>(value); }
inline unsigned __float_as_uint(float value) { return emulator::bits_of<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return emulator::bits_of<float>(value); }

template <class T>
T __ldg(const T* address) {
  return *emulator::loadable(address);
}

template <class T>
T __ldcs(const T* address) {
  return *emulator::loadable(address);
}

template <class T>
void __stcs(T* address, emulator::Same<T> value) {
  emulator::loadable(address);
  *address = value;
}

// As in CUDA, there are none for unsigned long, which std::uint64_t is.
#define LAMPFAST_EMULATOR_ATOMIC(NAME, TRAIT, CHANGED)                                          \
  template <class T, std::enable_if_t<emulator::TRAIT<T>, int> = 0>                             \
  T NAME(T* address, emulator::Same<T> value) {                                                 \
    return emulator::update(address, [value]([[maybe_unused]] T old) -> T { return CHANGED; }); \
  }
LAMPFAST_EMULATOR_ATOMIC(atomicAdd, atomic_number, emulator::sum(old, value))
LAMPFAST_EMULATOR_ATOMIC(atomicMin, atomic_integer, std::min(old, value))
LAMPFAST_EMULATOR_ATOMIC(atomicMax, atomic_integer, std::max(old, value))
LAMPFAST_EMULATOR_ATOMIC(atomicOr, atomic_integer, (old | value))
LAMPFAST_EMULATOR_ATOMIC(atomicAnd, atomic_integer, (old & value))
LAMPFAST_EMULATOR_ATOMIC(atomicExch, atomic_integer, value)
#undef LAMPFAST_EMULATOR_ATOMIC

template <class T, std::enable_if_t<emulator::atomic_integer<T>, int> = 0>
T atomicCAS(T* address, emulator::Same<T> expected, emulator::Same<T> value) {
  return emulator::update(address, [=](T old) { return old == expected ? value : old; });
}
