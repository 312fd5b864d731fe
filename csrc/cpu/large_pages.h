// Memory in large pages, where the system has them: first writes and far jumps then cost less.
#pragma once

#include <cstddef>
#include <memory>

namespace lampfast::cpu {

// Asks for large pages for memory that is about to be written. A hint: without it, or where there
// are none, all works as well.
void use_large_pages(void* memory, std::size_t bytes);

// Memory that is used again and again, since new memory costs time at its first touch.
class ReusedBuffer {
 public:
  // Uninitialised memory for a number of trivial items; what was there before is lost.
  template <class Item>
  Item* of(std::size_t count) {
    const std::size_t bytes = count * sizeof(Item);
    if (bytes > bytes_) {
      memory_.reset();
      memory_.reset(new std::byte[bytes]);
      bytes_ = bytes;
      use_large_pages(memory_.get(), bytes);
    }
    return reinterpret_cast<Item*>(memory_.get());
  }

 private:
  std::unique_ptr<std::byte[]> memory_;
  std::size_t bytes_ = 0;
};

}  // namespace lampfast::cpu
