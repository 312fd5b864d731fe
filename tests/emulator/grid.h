// Runs the blocks of a grid one after another and the threads of a block as fibers, in orders that
// a seed scrambles, so that code which depends on an order fails.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "fibers.h"

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  constexpr dim3(unsigned x_size = 1, unsigned y_size = 1, unsigned z_size = 1)
      : x(x_size), y(y_size), z(z_size) {}
  unsigned x, y, z;
};

inline thread_local uint3 threadIdx{};
inline thread_local uint3 blockIdx{};
inline thread_local dim3 blockDim{};
inline thread_local dim3 gridDim{};
constexpr int warpSize = 32;

namespace emulator {

constexpr unsigned most_threads = 1024;
constexpr unsigned warp_size = warpSize;

// The value of what CUDA leaves undefined: one that no program could take for an answer.
template <class T>
T garbage(T value) {
  std::memset(static_cast<void*>(&value), 0xc7, sizeof(T));
  return value;
}

class Random {  // SplitMix64
 public:
  explicit Random(std::uint64_t seed = 0) : state_(seed) {}

  std::size_t below(std::size_t limit) {
    std::uint64_t bits = state_ += 0x9e3779b97f4a7c15;
    bits = (bits ^ bits >> 30) * 0xbf58476d1ce4e5b9;
    bits = (bits ^ bits >> 27) * 0x94d049bb133111eb;
    return (bits >> 32) * limit >> 32;
  }

  template <class T>
  T take_any(std::vector<T>& items) {
    std::swap(items[below(items.size())], items.back());
    const T item = items.back();
    items.pop_back();
    return item;
  }

 private:
  std::uint64_t state_;
};

// What a thread waits in, told apart by its address; null while the thread can run.
using Wait = const char*;
inline constexpr char exited[] = "exit";

class Block;
inline thread_local Block* running_block = nullptr;  // of this OS thread, while a kernel runs on it

// The threads of a block, which take turns on one OS thread.
class Block {
 public:
  // What a thread throws comes out here, and the other threads are forgotten where they stand.
  void run(const std::function<void()>& kernel) {
    kernel_ = &kernel;
    start();
    main_.switch_to(next());
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    if (alive_ > 0) throw std::logic_error(deadlock());
  }

  Random& random() { return random_; }

  // The rest is for the thread that runs.

  unsigned lane() const { return current_ % warp_size; }

  // Lets any thread run before this one goes on.
  void yield() {
    release(current_);
    pause();
  }

  // Waits for all threads that have not exited; returns how many of them voted yes.
  int meet_block(Wait wait, bool vote) {
    threads_[current_].await(wait, 0);
    if (arrived_ == 0) barrier_ = wait;
    if (wait != barrier_) throw std::logic_error(describe(current_) + ", others in " + barrier_);
    ++arrived_;
    votes_ += vote ? 1 : 0;
    open_barrier();
    pause();
    return outcome_;
  }

  // Waits for the lanes in the mask. Returns what lane `source` brought or, without a source, a bit
  // for each lane that brought something other than zero.
  std::uint64_t meet_warp(Wait wait, unsigned mask, std::uint64_t value,
                          unsigned source = no_source) {
    Thread& self = threads_[current_];
    self.await(wait, mask);
    self.value = value;
    self.source = source;
    if (!self.names(lane())) throw std::logic_error(describe(current_) + " is not in its own mask");
    if (missed_by(current_) == nobody) answer(current_);
    pause();
    return self.value;
  }

 private:
  struct Thread {
    void await(Wait what, unsigned whom) {
      wait = what;
      mask = whom;
    }
    bool names(unsigned lane) const { return (mask >> lane & 1) != 0; }

    Fiber fiber;
    uint3 index{};
    Wait wait = nullptr;
    unsigned mask = 0;  // of its warp; none where it waits for its block
    unsigned source = 0;
    std::uint64_t value = 0;  // what it brings, and then what it gets
  };

  static constexpr unsigned no_source = warp_size;
  static constexpr unsigned nobody = most_threads;

  void start() {
    size_ = alive_ = blockDim.x * blockDim.y * blockDim.z;
    arrived_ = 0;
    votes_ = 0;
    ready_.resize(size_);
    std::iota(ready_.begin(), ready_.end(), 0U);
    for (unsigned i = 0; i < size_; ++i) {
      const unsigned row = i / blockDim.x;
      threads_[i].index = {i % blockDim.x, row % blockDim.y, row / blockDim.y};
      threads_[i].wait = nullptr;
      threads_[i].fiber.start([] { running_block->live(); });
    }
  }

  void live() {
    Fiber::begun(main_);
    try {
      (*kernel_)();
    } catch (...) {
      error_ = std::current_exception();
    }
    threads_[current_].await(exited, 0);
    --alive_;
    open_barrier();
    pause();
  }

  // Any thread that can run, or main_ when there is none or all is lost.
  Fiber& next() {
    if (ready_.empty() || error_) return main_;
    current_ = random_.take_any(ready_);
    threadIdx = threads_[current_].index;
    return threads_[current_].fiber;
  }

  void pause() {
    Thread& self = threads_[current_];
    Fiber& other = next();
    if (&other != &self.fiber) self.fiber.switch_to(other, self.wait == exited);
  }

  void release(unsigned thread) {
    threads_[thread].wait = nullptr;
    ready_.push_back(thread);
  }

  void open_barrier() {
    if (arrived_ == 0 || arrived_ < alive_) return;
    arrived_ = 0;
    outcome_ = std::exchange(votes_, 0);
    for (unsigned i = 0; i < size_; ++i) {
      if (threads_[i].wait == barrier_) release(i);
    }
  }

  void answer(unsigned thread) {
    const unsigned first = thread - thread % warp_size;
    const unsigned lanes = std::min(warp_size, size_ - first);
    std::array<std::uint64_t, warp_size> brought;
    std::uint64_t votes = 0;
    for (unsigned i = 0; i < warp_size; ++i) {
      const bool is_there = i < lanes && threads_[thread].names(i);
      brought[i] = is_there ? threads_[first + i].value : garbage(std::uint64_t{0});
      if (is_there && brought[i] != 0) votes |= std::uint64_t{1} << i;
    }
    for (unsigned i = 0; i < lanes; ++i) {
      if (!threads_[thread].names(i)) continue;
      Thread& lane = threads_[first + i];
      lane.value = lane.source == no_source ? votes : brought[lane.source];
      release(first + i);
    }
  }

  // A thread that this one waits for, or nobody. As on a GPU, a mask may name lanes that a small
  // block does not have.
  unsigned missed_by(unsigned thread) const {
    const Thread& self = threads_[thread];
    const bool in_warp = self.mask != 0;
    const unsigned first = in_warp ? thread - thread % warp_size : 0;
    const unsigned last = in_warp ? std::min(first + warp_size, size_) : size_;
    for (unsigned i = first; i < last; ++i) {
      const Thread& other = threads_[i];
      const bool needed = in_warp ? self.names(i - first) : other.wait != exited;
      if (needed && (other.wait != self.wait || other.mask != self.mask)) return i;
    }
    return nobody;
  }

  std::string describe(unsigned thread) const {
    const Thread& self = threads_[thread];
    const std::string who = "thread " + std::to_string(thread);
    if (self.wait == exited) return who + ", which has exited";
    std::array<char, 16> mask{};
    if (self.mask != 0) std::snprintf(mask.data(), mask.size(), "(0x%08x)", self.mask);
    return who + " in " + self.wait + mask.data();
  }

  // Follows the chain of who waits for whom, until a thread has exited or a few links say enough.
  std::string deadlock() const {
    const auto waits = [](const Thread& thread) { return thread.wait != exited; };
    unsigned thread = static_cast<unsigned>(std::find_if(threads_.begin(), threads_.end(), waits) -
                                            threads_.begin());
    std::string text = "deadlock: " + describe(thread);
    for (int links = 0; links < 3 && waits(threads_[thread]); ++links) {
      thread = missed_by(thread);
      text += " waits for " + describe(thread);
    }
    return text;
  }

  Random random_;
  Fiber main_;
  std::vector<Thread> threads_ = std::vector<Thread>(most_threads);
  std::vector<unsigned> ready_;
  const std::function<void()>* kernel_ = nullptr;
  std::exception_ptr error_;
  unsigned size_ = 0;
  unsigned current_ = 0;
  unsigned alive_ = 0;
  unsigned arrived_ = 0;  // of the threads that wait in the barrier
  Wait barrier_ = nullptr;
  int votes_ = 0;
  int outcome_ = 0;
};

// LAMPFAST_EMULATOR_SEED chooses the orders; every launch gets others.
inline Random scrambler() {
  static thread_local std::uint64_t launches = 0;
  const char* const seed = std::getenv("LAMPFAST_EMULATOR_SEED");
  const std::uint64_t number = seed == nullptr ? 0 : std::strtoull(seed, nullptr, 10);
  return Random((number << 32) + launches++);
}

inline void run_grid(dim3 grid, dim3 threads, const std::function<void()>& kernel) {
  static thread_local Block block;
  if (running_block != nullptr) throw std::logic_error("a kernel cannot launch another one here");
  gridDim = grid;
  blockDim = threads;
  block.random() = scrambler();
  std::vector<std::uint64_t> left(std::uint64_t{grid.x} * grid.y * grid.z);
  std::iota(left.begin(), left.end(), std::uint64_t{0});
  const struct Running {
    Running() { running_block = &block; }
    ~Running() { running_block = nullptr; }
  } running;
  while (!left.empty()) {
    const std::uint64_t index = block.random().take_any(left);
    const std::uint64_t row = index / grid.x;
    blockIdx = {static_cast<unsigned>(index % grid.x), static_cast<unsigned>(row % grid.y),
                static_cast<unsigned>(row / grid.y)};
    block.run(kernel);
  }
}

}  // namespace emulator
