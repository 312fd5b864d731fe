// Chooses the kernels' instruction set once, at their first use.
#include "cpu/kernels.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lampfast::cpu {

namespace baseline {
extern const Kernels table[];
extern const ScoreKeys score_keys;
}  // namespace baseline
#if defined(LAMPFAST_X86_64)
namespace avx2 {
extern const Kernels table[];
extern const ScoreKeys score_keys;
}  // namespace avx2
namespace avx512 {
extern const Kernels table[];
extern const ScoreKeys score_keys;
}  // namespace avx512
#endif

namespace {

struct InstructionSet {
  const char* name;
  const Kernels* table;
  ScoreKeys score_keys;
  bool (*supported)();
};

// Best first.
const InstructionSet instruction_sets[] = {
#if defined(LAMPFAST_X86_64)
    {"avx512", avx512::table, avx512::score_keys,
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
    {"avx2", avx2::table, avx2::score_keys,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2"); }},
#endif
    {"baseline", baseline::table, baseline::score_keys, [] { return true; }},
};

const InstructionSet& choose() {
  const char* wanted = std::getenv("LAMPFAST_ISA");
  std::string supported;
  for (const InstructionSet& set : instruction_sets) {
    if (!set.supported()) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == set.name) return set;
    supported += supported.empty() ? set.name : std::string(", ") + set.name;
  }
  throw std::runtime_error("LAMPFAST_ISA is '" + std::string(wanted) +
                           "', but this processor has: " + supported);
}

const InstructionSet& chosen() {
  static const InstructionSet& set = choose();
  return set;
}

}  // namespace

const Kernels& kernels(Dtype dtype) { return chosen().table[static_cast<int>(dtype)]; }

ScoreKeys score_keys() { return chosen().score_keys; }

const char* instruction_set() { return chosen().name; }

}  // namespace lampfast::cpu
