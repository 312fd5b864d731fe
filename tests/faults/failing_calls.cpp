// Preloaded into a process, makes its calls for memory or for threads fail. Python sets the numbers
// below through ctypes.
#include <dlfcn.h>
#include <pthread.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>

extern "C" {

void* __libc_malloc(std::size_t);
void* __libc_calloc(std::size_t, std::size_t);
void* __libc_realloc(void*, std::size_t);

std::atomic<long> is_counting{0};             // else nothing fails
std::atomic<long> allocations{0};             // so far
std::atomic<long> first_failing{0};           // the number of the allocation that fails
std::atomic<long> last_failing{0};            // and of the last one
std::atomic<long> threads_before_failure{0};  // how many may start while counting
}

namespace {

// The dynamic loader ends the process if it finds no memory for a thread, which the C library has
// usually made sure of.
bool is_loader(const void* caller) {
  Dl_info info;
  return dladdr(caller, &info) != 0 && std::strstr(info.dli_fname, "/ld-") != nullptr;
}

bool fails(const void* caller) {
  if (is_counting.load() == 0) return false;
  const long number = allocations++;
  if (number < first_failing.load() || number > last_failing.load() || is_loader(caller)) {
    return false;
  }
  errno = ENOMEM;
  return true;
}

}  // namespace

extern "C" {

void* malloc(std::size_t bytes) {
  return fails(__builtin_return_address(0)) ? nullptr : __libc_malloc(bytes);
}

void* calloc(std::size_t count, std::size_t bytes) {
  return fails(__builtin_return_address(0)) ? nullptr : __libc_calloc(count, bytes);
}

void* realloc(void* memory, std::size_t bytes) {
  return fails(__builtin_return_address(0)) ? nullptr : __libc_realloc(memory, bytes);
}

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) {
  using Create = int (*)(pthread_t*, const pthread_attr_t*, void* (*)(void*), void*);
  static const auto create = reinterpret_cast<Create>(dlsym(RTLD_NEXT, "pthread_create"));
  if (is_counting.load() != 0 && threads_before_failure-- <= 0) return EAGAIN;
  return create(thread, attributes, start, argument);
}
}
