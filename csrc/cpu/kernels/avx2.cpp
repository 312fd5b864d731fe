// The kernels for AVX2; the compiler flags are set in cmake/instruction_sets.cmake.
#define LAMPFAST_ISA avx2
#include "cpu/kernels/kernels.inl"
