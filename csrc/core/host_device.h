// Marks functions that run on the host and on GPUs alike.
#pragma once

#if defined(__CUDACC__)
#define LAMPFAST_HOST_DEVICE __host__ __device__
#else
#define LAMPFAST_HOST_DEVICE
#endif
