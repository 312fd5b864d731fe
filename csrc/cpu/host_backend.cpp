// Constructs the host backend; its methods are in the files that host_backend.h names.
#include "cpu/host_backend.h"

#include "core/candidate_budget.h"
#include "core/key_format.h"
#include "core/test_sizes.h"
#include "cpu/kernels/kernels.h"

namespace lampfast::cpu {
namespace {

std::int64_t bytes_for_candidates(const std::vector<Layer>& layers) {
  constexpr std::int64_t least = test_sizes ? 256 : 1 << 19;
  std::int64_t bytes = 0;
  for (const Layer& layer : layers) {
    if (layer.device == Layer::in_host_memory) bytes += layer.size * item_size(layer.stored());
  }
  return least + candidate_bytes(bytes);
}

}  // namespace

HostBackend::HostBackend(const Job& job, ThreadPool& pool)
    : layers_(job.layers),
      targets_(job.targets),
      pool_(pool),
      budget_(std::make_shared<CandidateBudget>(bytes_for_candidates(job.layers))),
      reads_(job.layers.size()),
      drawn_(job.layers.size()) {
  // Throws if LAMPFAST_ISA names none that is there: later it would be where nothing may throw.
  static_cast<void>(instruction_set());
}

std::unique_ptr<Backend> host_backend(const Job& job, ThreadPool& pool) {
  return std::make_unique<HostBackend>(job, pool);
}

}  // namespace lampfast::cpu
