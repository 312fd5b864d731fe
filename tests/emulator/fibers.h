// Fibers: functions with stacks of their own that hand one OS thread to each other.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <new>

// How GCC and Clang say that AddressSanitizer is on.
#if defined(__clang__)
#define LAMPFAST_EMULATOR_ASAN __has_feature(address_sanitizer)
#else
#define LAMPFAST_EMULATOR_ASAN __SANITIZE_ADDRESS__
#endif

#if LAMPFAST_EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// ucontext is portable, but makes a system call at every switch. Defining the macro tests it on
// x86-64 too.
#if !defined(__x86_64__) && !defined(LAMPFAST_EMULATOR_UCONTEXT)
#define LAMPFAST_EMULATOR_UCONTEXT
#endif
#if defined(LAMPFAST_EMULATOR_UCONTEXT)
#include <ucontext.h>
#endif

namespace emulator {

// Where a suspended fiber resumes.
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
    // What swap() pops: six registers, and the address to resume at. Above these is, as after a
    // call from an aligned stack, the return address of entry(): null, so that backtraces end
    // there.
    constexpr int words = 6 + 2;
    auto** top = reinterpret_cast<void**>(bottom + size) - words;
    for (int i = 0; i < words; ++i) top[i] = nullptr;
    top[6] = reinterpret_cast<void*>(entry);
    top_ = top;
  }

  void switch_to(Context& next) { swap(&top_, next.top_); }

 private:
  // Saves only the registers that a call must preserve, and no signal mask. The compiler must not
  // look inside: all memory, including threadIdx, may have changed when it returns.
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

// A fiber, or the OS thread itself, which is never started. AddressSanitizer is told of every
// switch.
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
    // If the tops of all stacks had the same offset in a page, they would compete for a few cache
    // lines.
    const std::size_t colour = reinterpret_cast<std::uintptr_t>(mapped_) / guard % 32 * 128;
    context_.prepare(mapped_ + guard, size - colour, entry);
  }

  // The first fiber of all is switched to from the thread itself, whose own stack becomes known
  // here.
  static void begun([[maybe_unused]] Fiber& thread) {
#if LAMPFAST_EMULATOR_ASAN
    const bool is_first = thread.bottom_ == nullptr;
    __sanitizer_finish_switch_fiber(nullptr, is_first ? &thread.bottom_ : nullptr,
                                    is_first ? &thread.size_ : nullptr);
#endif
  }

  void switch_to(Fiber& next, [[maybe_unused]] bool is_final = false) {
#if LAMPFAST_EMULATOR_ASAN
    void* frames = nullptr;
    __sanitizer_start_switch_fiber(is_final ? nullptr : &frames, next.bottom_, next.size_);
    context_.switch_to(next.context_);
    __sanitizer_finish_switch_fiber(frames, nullptr, nullptr);
#else
    context_.switch_to(next.context_);
#endif
  }

 private:
  static constexpr std::size_t guard = 4096;  // a page below the stack, where an overflow faults
#if LAMPFAST_EMULATOR_ASAN
  static constexpr std::size_t size = 256 << 10;  // frames are larger, and reports need room
#else
  static constexpr std::size_t size = 64 << 10;
#endif

  // Frames of an abandoned fiber would stay poisoned for whoever gets the memory next.
  void forget() {
#if LAMPFAST_EMULATOR_ASAN
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
