#define LAMPFAST_ISA avx2
#include "cpu/kernels.inl"
