// Communicator: all that the engine knows of other processes. The bindings implement it by calls to
// Python.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace lampfast {

// Every rank makes the same calls, in the same order and with vectors of the same size, and has the
// same result.
class Communicator {
 public:
  virtual ~Communicator() = default;

  virtual std::size_t rank() const = 0;
  virtual std::size_t size() const = 0;

  // Adds up the vectors of all ranks, modulo 2^64, or takes their maxima, number by number. The
  // first number is less than 2^32, also when it is added up, as a rank that cannot take part any
  // more gives 2^32 there; then all ranks throw. gather does so too.
  virtual void sum(std::vector<std::int64_t>& numbers) = 0;
  virtual void max(std::vector<std::int64_t>& numbers) = 0;
  // The bytes of all ranks, in their order. They may have any size; where none has more than
  // `expected`, which is the same on all ranks, one collective is enough.
  virtual std::vector<std::string> gather(const std::string& own, std::size_t expected) = 0;
};

}  // namespace lampfast
