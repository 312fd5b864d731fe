// Fibers: functions with stacks of their own that hand one OS thread to each other.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// The other way is portable, but asks the system at every switch; the macro is there to test it.
#if !defined(__x86_64__) && !defined(LAMPFAST_EMULATOR_UCONTEXT)
#define LAMPFAST_EMULATOR_UCONTEXT
#endif
#if defined(LAMPFAST_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

// Where a suspended fiber goes on.
class Context {
 public:
#if defined(LAMPFAST_EMULATOR_UCONTEXT)
  void prepare(char* bottom, std::size_t size, void (*entry)()) {
    getcontext(&context_);
    context_.uc_stack.ss_sp = bottom;
    context_.uc_stack.ss_size = size;
    context_.uc_link = nullptr;
    makecontext(&context_, entry, 0);
  }

  void switch_to(Context& next) { swapcontext(&context_, &next.context_); }

 private:
  ucontext_t context_;
#else
  void prepare(char* bottom, std::size_t size, void (*entry)()) {
    // What swap() takes from a stack: six registers, where to go on and, as after a call that
    // aligned the stack, where entry() would return to: nowhere, so that backtraces end there.
    constexpr int words = 6 + 2;
    auto** top = reinterpret_cast<void**>(bottom + size) - words;
    for (int i = 0; i < words; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
    top_ = top;
  }

  void switch_to(Context& next) { swap(&top_, next.top_); }

 private:
  // Only what a call must preserve is kept, and no signal mask. The compiler must not look inside:
  // all memory, threadIdx too, may be different when it returns.
#if defined(__clang__)
  __attribute__((naked, noinline, optnone))
#else
  __attribute__((naked, noipa))
#endif
  static void swap(void**, void*) {
    asm("pushq %rbp\n\t pushq %rbx\n\t pushq %r12\n\t pushq %r13\n\t pushq %r14\n\t pushq %r15\n\t"
        "movq %rsp, (%rdi)\n\t"
        "movq %rsi, %rsp\n\t"
        "popq %r15\n\t popq %r14\n\t popq %r13\n\t popq %r12\n\t popq %rbx\n\t popq %rbp\n\t"
        "ret");
  }

  void* top_ = nullptr;
#endif
};

// A fiber, or the OS thread itself, which is the one that is never started. AddressSanitizer has
// to be told of every switch.
class Fiber {
 public:
  Fiber() = default;
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;
  ~Fiber() {
    if (mapped_ == nullptr) return;
    forget();
    munmap(mapped_, guard + size);
  }

  // The next switch to this fiber calls entry(), which must call `begun` first and may never
  // return. Whatever the fiber did before is forgotten; its stack is used again.
  void start(void (*entry)()) {
    if (mapped_ == nullptr) map();
    forget();
    // Tops that lie the same way in their pages would compete for the same few lines of the cache.
    const std::size_t colour = reinterpret_cast<std::uintptr_t>(mapped_) / guard % 32 * 128;
    context_.prepare(mapped_ + guard, size - colour, entry);
  }

  // The first of all begins on the thread itself, whose own stack is learned so.
  static void begun([[maybe_unused]] Fiber& thread) {
#if defined(__SANITIZE_ADDRESS__)
    const bool first = thread.bottom_ == nullptr;
    __sanitizer_finish_switch_fiber(nullptr, first ? &thread.bottom_ : nullptr,
                                    first ? &thread.size_ : nullptr);
#endif
  }

  void switch_to(Fiber& next, [[maybe_unused]] bool for_good = false) {
#if defined(__SANITIZE_ADDRESS__)
    void* frames = nullptr;
    __sanitizer_start_switch_fiber(for_good ? nullptr : &frames, next.bottom_, next.size_);
    context_.switch_to(next.context_);
    __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#else
    context_.switch_to(next.context_);
#endif
  }

 private:
  static constexpr std::size_t guard = 4096;  // a page below the stack, where an overflow faults
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t size = 256 << 10;  // frames are larger, and reports need room
#else
  static constexpr std::size_t size = 64 << 10;
#endif

  // Frames that nobody will return to would stay marked, for whoever gets the memory next.
  void forget() {
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(bottom_, size_);
#endif
  }

  void map() {
    void* const memory = mmap(nullptr, guard + size, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_STACK, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    mapped_ = static_cast<char*>(memory);
    mprotect(mapped_, guard, PROT_NONE);
    bottom_ = mapped_ + guard;
    size_ = size;
  }

  Context context_;
  char* mapped_ = nullptr;
  const void* bottom_ = nullptr;
  std::size_t size_ = 0;
};

}  // namespace emulator
