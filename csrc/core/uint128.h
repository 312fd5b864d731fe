// The compiler's unsigned 128-bit integer, whose own name -Wpedantic rejects.
#pragma once

namespace lampfast {

__extension__ typedef unsigned __int128 Uint128;

}  // namespace lampfast
