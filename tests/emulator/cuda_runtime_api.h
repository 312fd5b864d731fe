// Forwards to cuda_runtime.h, the emulator's only header for the runtime.
#pragma once

#include "cuda_runtime.h"
