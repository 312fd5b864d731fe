// What this build has of CUDA; the kernels come with the CUDA engine.
#include <cuda_runtime_api.h>

#include "cuda/devices.h"

namespace lampfast::cuda {

bool built() { return CUDART_VERSION > 0; }

}  // namespace lampfast::cuda
