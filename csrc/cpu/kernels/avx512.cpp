// The kernels for AVX-512; the compiler flags are set in cmake/instruction_sets.cmake.
#define LAMPFAST_ISA avx512
#include "cpu/kernels/kernels.inl"
