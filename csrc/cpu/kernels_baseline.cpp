#define LAMPFAST_ISA baseline
#include "cpu/kernels.inl"
