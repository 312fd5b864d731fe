// Marks functions that run on the host and on GPUs alike.
#pragma once

#if defined(__CUDACC__)
#define LAMPFAST_BOTH __host__ __device__
#else
#define LAMPFAST_BOTH
#endif
