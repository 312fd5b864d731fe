#!/usr/bin/env bash
# What a machine with a GPU can tell in ten minutes, in order of value: are the answers right, what does
# each call cost, do the tests pass, what do the sanitizers and the profiler see. Needs no network.
#
# Usage: benchmarks/device.sh [FOLDER]
#
# Every step has a time limit, and whatever becomes of it the next ones run; only without a build there is
# nothing to run. What a step says is at once in a log in FOLDER (or $OUT, or a new folder).
#   PYTHON=python3     has torch, numpy, pybind11, scikit-build-core, cmake and ninja; for the tests pytest
#                      and hypothesis, for gpu.py rich and typer
#   LIMIT=570          seconds in all
#   LAMPFAST_CUDA=ON   without a GPU OFF, which shows that the script works, as EMULATED does
set -u
root=$(cd "$(dirname "$0")/.." && pwd) && cd "$root" || exit
logs=${1:-${OUT:-$(mktemp -d)}}
mkdir -p "$logs" && logs=$(cd "$logs" && pwd) || exit
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PYTHONFAULTHANDLER=1 PIP_DISABLE_PIP_VERSION_CHECK=1
export PATH=$PATH:/usr/local/cuda/bin
export CMAKE_BUILD_PARALLEL_LEVEL=${CMAKE_BUILD_PARALLEL_LEVEL:-$(nproc)}

results=()
step() { # NAME LOG LIMIT COMMAND...: runs it, notes how it went, and shows the end of what it said
  local name=$1 log=$logs/$2.log limit=$3 left=$((${LIMIT:-570} - SECONDS)) start=$SECONDS
  local result=passed status before
  shift 3
  if [ "$left" -lt 5 ]; then
    results+=("$name: no time was left")
    return 1
  fi
  [ "$left" -ge "$limit" ] || limit=$left
  printf '\n=== %s: %s\n' "$name" "$*" >>"$log"
  before=$(stat -c %s "$log")
  # Interrupted, Python says where it was, pytest what has passed, and ncu what it has seen.
  timeout -s INT -k 10 "$limit" env --default-signal=INT "$@" >>"$log" 2>&1 </dev/null
  status=$?
  case $status in
    0) ;;
    124 | 137) result="STOPPED after $limit s" ;;
    *) result="FAILED ($status)" ;;
  esac
  results+=("$name: $result, $((SECONDS - start)) s")
  printf '\n=== %s\n' "${results[-1]}"
  tail -c "+$((before + 1))" "$log" | tail -n 40
  return $status
}

finish() { # STATUS
  printf '\n=== summary, %s s; logs in %s\n' "$SECONDS" "$logs"
  printf '%s\n' "${results[@]}" | tee -a "$logs/machine.log"
  exit "$1"
}

step machine machine 60 bash -c '
  nvidia-smi; nvcc --version; uname -sr; nproc; free -g
  "$0" -VV && "$0" - <<"END"
import importlib.util, torch
print("torch", torch.__version__, "CUDA", torch.version.cuda)
names = "pybind11 scikit_build_core cmake ninja pytest hypothesis pytest_timeout rich typer"
missing = [name for name in names.split() if importlib.util.find_spec(name) is None]
print("missing:", *missing or ["nothing"])
for i in range(torch.cuda.device_count()):
    print(torch.cuda.get_device_properties(i))
END' "$python"

device=cpu
architecture=90-real
if found=$(timeout 60 "$python" -c 'import torch
print("%d%d-real" % torch.cuda.get_device_capability())' 2>/dev/null); then
  device=cuda
  architecture=$found
fi
few=()
[ $device = cuda ] || few=(--few)
cuda=${LAMPFAST_CUDA:-$([ $device = cuda ] && echo ON || echo OFF)}
sizes=OFF
if [ "$cuda" = EMULATED ]; then
  device=emulated
  sizes=ON # or emulating what the tests try would take hours
  export LAMPFAST_EMULATED=1
fi

step build machine 200 "$python" -m pip install -q --no-index --no-build-isolation --no-deps \
  --target "$work/site" . --config-settings=build-dir="$work/build" \
  --config-settings=cmake.define.LAMPFAST_CUDA="$cuda" \
  --config-settings=cmake.define.LAMPFAST_TEST_SIZES="$sizes" \
  --config-settings=cmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture" || finish 1
export PYTHONPATH=$work/site
run=("$python" benchmarks/device.py)
on=(--device "$device")

step smoke smoke 80 "${run[@]}" smoke "${on[@]}" "${few[@]}"
step times times 80 "${run[@]}" times "${on[@]}" "${few[@]}"
step kernels times 40 "${run[@]}" kernels "${on[@]}" "${few[@]}"

# In a copy without the sources, which would hide the package that was just built. Other packages'
# plugins and warnings are not what is tested.
cp -r tests pyproject.toml conftest.py "$work"
export PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 HYPOTHESIS_PROFILE=brief
pytest=("$python" -m pytest -q -o addopts= -o filterwarnings=default -p no:cacheprovider)
if "$python" -c 'import pytest_timeout' 2>/dev/null; then
  pytest+=(-p pytest_timeout --timeout=60)
fi
step tests tests 130 env -C "$work" "${pytest[@]}" -ra --maxfail=25 --durations=5 \
  tests/test_{cuda,devices,gpus}.py

quick=()
[ $device = cuda ] || quick=(--quick --device cpu)
[ $device = emulated ] ||
  step gpu.py gpu 120 "$python" benchmarks/gpu.py --rounds 5 --json "$logs/gpu.json" "${quick[@]}"

# torch's allocator would hide what is out of bounds.
for tool in 'memcheck --report-api-errors no' racecheck synccheck; do # torch's calls are not tested
  # shellcheck disable=SC2086 # words
  step "${tool%% *}" sanitizers 60 env PYTORCH_NO_CUDA_MEMORY_CACHING=1 \
    compute-sanitizer --tool $tool --error-exitcode 9 "${run[@]}" smoke "${on[@]}" --few
done

step ncu ncu 60 ncu --clock-control none --section SpeedOfLight --section Occupancy \
  --section LaunchStats --section MemoryWorkloadAnalysis --kernel-name-base demangled \
  -k 'regex:lampfast|cub' "${run[@]}" calls "${on[@]}" "${few[@]}"

case "${results[*]}" in
  *FAILED* | *STOPPED* | *'no time'*) finish 1 ;;
  *) finish 0 ;;
esac
