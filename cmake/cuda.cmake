# The CUDA engine, or the stub that stands in for it, so that no other source needs an #ifdef.
if(LAMPFAST_CUDA MATCHES "^(ON|AUTO)$")
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    set(LAMPFAST_ARCHITECTURES "75-real;80-real;86-real;89-real;90-real;100-real;120")
    execute_process(COMMAND ${CMAKE_CUDA_COMPILER} --list-gpu-code OUTPUT_VARIABLE LAMPFAST_KNOWN)
    if(NOT LAMPFAST_KNOWN MATCHES "sm_120") # before CUDA 12.8
      set(LAMPFAST_ARCHITECTURES "75-real;80-real;86-real;89-real;90")
    endif()
    set(CMAKE_CUDA_ARCHITECTURES "${LAMPFAST_ARCHITECTURES}"
        CACHE STRING "CUDA architectures; the last one also carries PTX")
    enable_language(CUDA)
  elseif(LAMPFAST_CUDA STREQUAL "ON")
    message(FATAL_ERROR "LAMPFAST_CUDA=ON, but no CUDA compiler was found: set CUDACXX to nvcc")
  endif()
endif()

file(GLOB LAMPFAST_CUDA_ENGINE CONFIGURE_DEPENDS csrc/cuda/*.cu)
if(LAMPFAST_CUDA STREQUAL "EMULATED")
  set_property(SOURCE ${LAMPFAST_CUDA_ENGINE} PROPERTY LANGUAGE CXX)
  set_property(SOURCE ${LAMPFAST_CUDA_ENGINE} PROPERTY COMPILE_OPTIONS -xc++ -Wno-unknown-pragmas)
  target_sources(_core PRIVATE ${LAMPFAST_CUDA_ENGINE})
  target_include_directories(_core PRIVATE tests/emulator)
elseif(CMAKE_CUDA_COMPILER)
  target_sources(_core PRIVATE ${LAMPFAST_CUDA_ENGINE})
  # The target is older than the language, so these are not taken over from CMAKE_CUDA_*.
  set_target_properties(_core PROPERTIES
    CUDA_RUNTIME_LIBRARY Static
    CUDA_STANDARD 17
    CUDA_ARCHITECTURES "${CMAKE_CUDA_ARCHITECTURES}")
  target_compile_options(_core PRIVATE
    $<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-Wall,-Wextra,-ffp-contract=off -fmad=false
                               --expt-relaxed-constexpr>
    $<$<AND:$<COMPILE_LANGUAGE:CUDA>,$<BOOL:${LAMPFAST_WERROR}>>:--Werror=all-warnings>)
else()
  target_sources(_core PRIVATE csrc/cuda/stub.cpp)
endif()
