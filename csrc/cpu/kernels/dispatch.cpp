// Chooses the kernels' instruction set at their first use; a build for tests may choose again.
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/kernels/kernels.h"

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
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     }},
    {"avx2", avx2::table, avx2::score_keys,
     [] {
       return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
              __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
     }},
#endif
    {"baseline", baseline::table, baseline::score_keys, [] { return true; }},
};

const InstructionSet& choose(const char* wanted) {
  std::string supported;
  for (const InstructionSet& set : instruction_sets) {
    if (!set.supported()) continue;
    if (wanted == nullptr || *wanted == '\0' || std::string(wanted) == set.name) return set;
    supported += supported.empty() ? set.name : std::string(", ") + set.name;
  }
  throw std::runtime_error("LAMPFAST_ISA is '" + std::string(wanted) +
                           "', but this processor has: " + supported);
}

const InstructionSet*& current() {
  static const InstructionSet* set = &choose(std::getenv("LAMPFAST_ISA"));
  return set;
}

}  // namespace

const Kernels& kernels_for(Dtype dtype) { return current()->table[static_cast<int>(dtype)]; }

ScoreKeys score_keys() { return current()->score_keys; }

const char* instruction_set() { return current()->name; }

#if defined(LAMPFAST_TEST_SIZES)
void use_instruction_set(const char* name) { current() = &choose(name); }
#endif

}  // namespace lampfast::cpu
