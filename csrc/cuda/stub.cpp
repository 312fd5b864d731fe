// Stands in for the GPU backend in a CPU-only build.
#include <stdexcept>

#include "cuda/gpu_backend.h"

namespace lampfast::cuda {
namespace {

[[noreturn]] void refuse() { throw std::runtime_error("this build has no CUDA engine"); }

}  // namespace

bool built() { return false; }
bool usable() { return false; }
bool runs_on(int) { return false; }

Needs needs(const std::vector<Layer>&, int) { refuse(); }
Needs needs_of_scores(const std::vector<Layer>&, int) { refuse(); }

std::unique_ptr<Backend> gpu_backend(const Job&, const Gpu&) { refuse(); }

}  // namespace lampfast::cuda
