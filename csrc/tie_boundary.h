// Where the ties that go end and those that stay begin.
#pragma once

#include <cstdint>

#include "cpu/parallel.h"
#include "layer.h"
#include "survey.h"

namespace lampfast {

// The row-major index from which on the elements equal to the cut's magnitude are kept: that of the
// one after the first `ties`, and 0 if all are kept. A survey that has stored its candidates and
// holds the cut (null: there is none) saves reading the layer again.
std::int64_t first_kept_tie(const Layer& layer, const Cut& cut, const Survey* survey,
                            cpu::Team& team);

}  // namespace lampfast
