// The emulator has only one header for the runtime.
#pragma once

#include "cuda_runtime.h"
