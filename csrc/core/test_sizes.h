// A build for tests (LAMPFAST_TEST_SIZES) in which the engine's sizes are so small that a few
// weights take the paths of millions: many chunks, spent budgets, wrong estimates, layers read
// again.
#pragma once

namespace lampfast {

#if defined(LAMPFAST_TEST_SIZES)
constexpr bool test_sizes = true;
#else
constexpr bool test_sizes = false;
#endif

}  // namespace lampfast
