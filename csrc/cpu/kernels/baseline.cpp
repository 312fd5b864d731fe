// The kernels for every processor of the architecture; the compiler flags are set in
// cmake/instruction_sets.cmake.
#define LAMPFAST_ISA baseline
#include "cpu/kernels/kernels.inl"
