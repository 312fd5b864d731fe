// What this build has of CUDA. The CPU-only build links stub.cpp in place of the engine.
#pragma once

namespace lampfast::cuda {

bool built();

}  // namespace lampfast::cuda
