// Where block-wide collectives keep the values of their threads.
#pragma once

#include <cuda_runtime.h>

#include <new>
#include <stdexcept>

namespace emulator {

// One value per thread. As in CUB there is no constructor, as it lies in shared memory.
template <class T, int Threads>
class Slots {
 public:
  void set(unsigned i, T value) { ::new (bytes_ + i * sizeof(T)) T(value); }
  const T& operator[](unsigned i) const {
    return *std::launder(reinterpret_cast<const T*>(bytes_ + i * sizeof(T)));
  }

 private:
  alignas(T) unsigned char bytes_[Threads * sizeof(T)];
};

inline unsigned cub_thread(int threads) {
  const auto size = static_cast<unsigned>(threads);
  if (blockDim.x == size && blockDim.y == 1 && blockDim.z == 1) return threadIdx.x;
  throw std::logic_error("a block does not have the threads that its CUB collective is for");
}

}  // namespace emulator
