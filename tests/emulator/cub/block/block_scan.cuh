// Prefix sums over a block.
#pragma once

#include "../slots.h"

namespace cub {

template <class T, int Threads>
class BlockScan {
 public:
  using TempStorage = emulator::Slots<T, Threads>;

  explicit BlockScan(TempStorage& storage) : storage_(storage) {}

  void InclusiveSum(T in, T& out) {
    const unsigned thread = scan(in);
    out = storage_[thread];
  }

  void ExclusiveSum(T in, T& out) {
    const unsigned thread = scan(in);
    out = thread == 0 ? T{} : storage_[thread - 1];
  }

  void ExclusiveSum(T in, T& out, T& aggregate) {
    ExclusiveSum(in, out);
    aggregate = storage_[Threads - 1];
  }

 private:
  // Leaves the inclusive sums in the storage.
  unsigned scan(T in) {
    const unsigned thread = emulator::cub_thread(Threads);
    storage_.set(thread, in);
    __syncthreads();
    for (unsigned i = 1; thread == 0 && i < Threads; ++i) {
      storage_.set(i, static_cast<T>(storage_[i - 1] + storage_[i]));
    }
    __syncthreads();
    return thread;
  }

  TempStorage& storage_;
};

}  // namespace cub
