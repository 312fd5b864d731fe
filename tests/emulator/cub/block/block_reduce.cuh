// Reductions over a block. All threads but the first get garbage, as CUB leaves their results
// undefined.
#pragma once

#include "../slots.h"

namespace cub {

template <class T, int Threads>
class BlockReduce {
 public:
  using TempStorage = emulator::Slots<T, Threads>;

  explicit BlockReduce(TempStorage& storage) : storage_(storage) {}

  T Sum(T value) {
    return Reduce(value, [](const T& a, const T& b) { return static_cast<T>(a + b); });
  }

  // There is no barrier at the end: as in CUB, the storage may be used again only after one.
  template <class Operation>
  T Reduce(T value, Operation operation) {
    const unsigned thread = emulator::cub_thread(Threads);
    storage_.set(thread, value);
    __syncthreads();
    return thread == 0 ? fold(0, Threads, operation) : emulator::garbage(value);
  }

 private:
  // Keeps the order of the values, but brackets them at random.
  template <class Operation>
  T fold(unsigned begin, unsigned size, Operation& operation) {
    if (size == 1) return storage_[begin];
    const auto left = static_cast<unsigned>(1 + emulator::block().random().below(size - 1));
    const T first = fold(begin, left, operation);
    return operation(first, fold(begin + left, size - left, operation));
  }

  TempStorage& storage_;
};

}  // namespace cub
