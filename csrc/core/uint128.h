// The compilers' 128-bit integer, whose name pedantic warnings do not accept.
#pragma once

namespace lampfast {

__extension__ typedef unsigned __int128 Uint128;

}  // namespace lampfast
