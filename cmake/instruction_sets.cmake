# The kernels, one translation unit for each instruction set with its own flags (cpu/kernels.inl).
set(LAMPFAST_UNITS csrc/cpu/kernels_baseline.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64)$")
  target_compile_definitions(_core PRIVATE LAMPFAST_X86_64)
  list(APPEND LAMPFAST_UNITS csrc/cpu/kernels_avx2.cpp csrc/cpu/kernels_avx512.cpp)
  set_property(SOURCE csrc/cpu/kernels_avx2.cpp
    PROPERTY COMPILE_OPTIONS -mavx2 -mbmi2 -mf16c -mpopcnt)
  set_property(SOURCE csrc/cpu/kernels_avx512.cpp
    PROPERTY COMPILE_OPTIONS -mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mbmi2 -mf16c
                             -mpopcnt -mprefer-vector-width=512)
endif()
# Link-time optimisation could move code from one unit into another.
set_property(SOURCE ${LAMPFAST_UNITS} APPEND PROPERTY COMPILE_OPTIONS -fno-lto)
target_sources(_core PRIVATE ${LAMPFAST_UNITS})
