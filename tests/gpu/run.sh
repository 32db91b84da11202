#!/usr/bin/env bash
# Everything that needs a GPU: run.sh [--built FOLDER]
#
# Checks every operation of the CUDA device against the CPU's oracle, then whole models, then the operations again under
# compute-sanitizer, then that no kernel spills. The last line is 'N passed, N failed, N skipped'.
#
# It builds what it runs, for the GPU that is there; that takes what the project needs. A machine with a GPU and little
# else runs what was built elsewhere (cmake --build BUILD --target gpu_tests): FOLDER holds the programs gpu_* and the
# shared libraries that they miss.
set -uo pipefail
programs=
if [ "${1:-}" = --built ]; then
  programs=$(realpath "$2")
  export LD_LIBRARY_PATH=$programs${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
cd "$(dirname "$0")/../.." || exit 1
tests=(device linear attention pick stage)
passed=0 failed=0 skipped=0
say() { printf '== %s\n' "$*"; }
finish() {
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
  exit
}
# check NAME COMMAND…: counts it; 77 is a test that was skipped.
check() {
  local status
  say "$1"
  "${@:2}"
  status=$?
  case $status in
  0) passed=$((passed + 1)) ;;
  77) skipped=$((skipped + 1)) ;;
  *) echo "run.sh: $1 failed ($status)" >&2; failed=$((failed + 1)) ;;
  esac
}

if ! nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader; then
  echo "run.sh: there is no GPU" >&2
  failed=1
  finish
fi
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
build() {
  cmake -S . -B build-gpu -DCMAKE_BUILD_TYPE=Release -DPENSTOCK_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture" &&
    cmake --build build-gpu --target gpu_tests -j "$(nproc)"
}
if [ -z "$programs" ]; then
  say "building for compute capability $architecture"
  programs=build-gpu/tests/gpu
  mkdir -p build-gpu
  build >build-gpu/run.log 2>&1 || {
    tail -n 40 build-gpu/run.log >&2
    failed=1
    finish
  }
fi

for test in "${tests[@]}"; do check "$test" "$programs/gpu_$test"; done
# It runs kernels some hundred times slower; the sizes of these tests are made for that.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
for tool in memcheck racecheck synccheck initcheck; do
  for test in device linear attention pick; do
    if [ -x "$sanitizer" ]; then
      check "$tool $test" "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 5 "$programs/gpu_$test"
    else
      skipped=$((skipped + 1))
    fi
  done
done
check spills tests/gpu/spills.sh "$architecture"
finish
