// Stands in for the CUDA engine in a CPU-only build.
#include "cuda/devices.h"

namespace lampfast::cuda {

bool built() { return false; }

}  // namespace lampfast::cuda
