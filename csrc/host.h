// Host memory as a place: every stage by the threads of a team.
#pragma once

#include <memory>

#include "cpu/parallel.h"
#include "place.h"

namespace lampfast {

std::unique_ptr<Place> host_place(const Job& job, cpu::Team& team);

}  // namespace lampfast
