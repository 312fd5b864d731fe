# The kernels, one translation unit for each instruction set with its own flags
# (csrc/cpu/kernels/kernels.inl).
set(LAMPFAST_UNITS csrc/cpu/kernels/baseline.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_compile_definitions(_core PRIVATE LAMPFAST_X86_64)
  list(APPEND LAMPFAST_UNITS csrc/cpu/kernels/avx2.cpp csrc/cpu/kernels/avx512.cpp)
  set_property(SOURCE csrc/cpu/kernels/avx2.cpp
    PROPERTY COMPILE_OPTIONS -mavx2 -mfma -mbmi -mbmi2 -mf16c -mpopcnt)
  set_property(SOURCE csrc/cpu/kernels/avx512.cpp
    PROPERTY COMPILE_OPTIONS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi -mbmi2 -mf16c
                             -mpopcnt -mprefer-vector-width=512)
endif()
# Link-time optimisation could move code from one unit into another. Loops of a few instructions lose
# up to a quarter of their speed where they happen to cross a line of the instruction cache.
set_property(SOURCE ${LAMPFAST_UNITS}
  APPEND PROPERTY COMPILE_OPTIONS -fno-lto -falign-functions=64 -falign-loops=64)
target_sources(_core PRIVATE ${LAMPFAST_UNITS})
