// A build for tests (LAMPFAST_TINY) in which the engine's sizes are so small that a few weights
// take the paths of millions: many chunks, spent budgets, wrong guesses, layers read again.
#pragma once

namespace lampfast {

#if defined(LAMPFAST_TINY)
constexpr bool tiny = true;
#else
constexpr bool tiny = false;
#endif

}  // namespace lampfast
