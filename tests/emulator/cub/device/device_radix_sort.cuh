// A stable sort by some of the bits of unsigned keys.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace cub {

template <class T>
struct DoubleBuffer {
  DoubleBuffer() = default;
  DoubleBuffer(T* current, T* alternate) : d_buffers{current, alternate} {}

  T* Current() { return d_buffers[selector]; }
  T* Alternate() { return d_buffers[selector ^ 1]; }

  T* d_buffers[2] = {nullptr, nullptr};
  int selector = 0;
};

class DeviceRadixSort {
 public:
  // CUB may leave the result in either buffer; here it is always in the alternate one. Signed and
  // floating-point keys are left out.
  template <class Key, class Value, class Count>
  static cudaError_t SortPairs(void* temporary, std::size_t& temporary_bytes,
                               DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values, Count count,
                               int begin_bit = 0, int end_bit = sizeof(Key) * 8,
                               cudaStream_t = nullptr) {
    static_assert(std::is_unsigned_v<Key> && std::is_trivially_copyable_v<Value>);
    const auto sort_all = [&](std::uint64_t mask) { sort(keys, values, count, mask); };
    return run(temporary, temporary_bytes, begin_bit, end_bit, int{sizeof(Key) * 8}, sort_all);
  }

  template <class Key, class Count>
  static cudaError_t SortKeys(void* temporary, std::size_t& temporary_bytes,
                              DoubleBuffer<Key>& keys, Count count, int begin_bit = 0,
                              int end_bit = sizeof(Key) * 8, cudaStream_t = nullptr) {
    static_assert(std::is_unsigned_v<Key>);
    const auto sort_all = [&](std::uint64_t mask) {
      std::vector<Key> places(2 * static_cast<std::size_t>(count));
      DoubleBuffer<Key> values(places.data(), places.data() + count);
      sort(keys, values, count, mask);
    };
    return run(temporary, temporary_bytes, begin_bit, end_bit, int{sizeof(Key) * 8}, sort_all);
  }

 private:
  template <class Body>
  static cudaError_t run(void* temporary, std::size_t& temporary_bytes, int begin_bit, int end_bit,
                         int most_bits, Body&& sort_all) {
    return emulator::call([&] {
      constexpr std::size_t least_bytes = 1024;
      if (temporary == nullptr) {
        temporary_bytes = least_bytes;
        return cudaSuccess;
      }
      const bool are_bits_valid = 0 <= begin_bit && begin_bit <= end_bit && end_bit <= most_bits;
      if (!are_bits_valid || temporary_bytes < least_bytes) return cudaErrorInvalidValue;
      std::memset(temporary, 0xc7, temporary_bytes);  // it must really be there
      const int width = end_bit - begin_bit;
      sort_all(width == 0 ? 0 : ~std::uint64_t{0} >> (64 - width) << begin_bit);
      return cudaSuccess;
    });
  }

  template <class Key, class Value, class Count>
  static void sort(DoubleBuffer<Key>& keys, DoubleBuffer<Value>& values, Count count,
                   std::uint64_t mask) {
    std::vector<std::pair<Key, Value>> pairs;
    for (Count i = 0; i < count; ++i) {
      pairs.emplace_back(keys.Current()[i], values.Current()[i]);
      keys.Current()[i] = emulator::garbage(Key{});
      values.Current()[i] = emulator::garbage(values.Current()[i]);
    }
    std::stable_sort(pairs.begin(), pairs.end(), [mask](const auto& a, const auto& b) {
      return (a.first & mask) < (b.first & mask);
    });
    keys.selector ^= 1;
    values.selector ^= 1;
    for (Count i = 0; i < count; ++i) {
      std::tie(keys.Current()[i], values.Current()[i]) = pairs[static_cast<std::size_t>(i)];
    }
  }
};

}  // namespace cub
