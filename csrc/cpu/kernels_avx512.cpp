#define LAMPFAST_ISA avx512
#include "cpu/kernels.inl"
