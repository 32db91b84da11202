#!/usr/bin/env bash
# Everything that needs a GPU: run.sh [BUILD-FOLDER]
#
# Builds the CUDA device for the GPUs of this machine, checks every operation against the CPU's oracle on it, and again
# under compute-sanitizer, then that no kernel spills. The last line is 'N passed, N failed, N skipped'.
set -uo pipefail
cd "$(dirname "$0")/../.." || exit 1
build=${1:-build-gpu}
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
say "building for compute capability $architecture"
if ! { cmake -S . -B "$build" -DCMAKE_BUILD_TYPE=Release -DPENSTOCK_CUDA=ON \
  -DCMAKE_CUDA_ARCHITECTURES="$architecture" && cmake --build "$build" --target gpu_tests -j "$(nproc)"; } >"$build.log" 2>&1
then
  tail -n 40 "$build.log" >&2
  failed=1
  finish
fi

for test in "${tests[@]}"; do check "$test" "$build/tests/gpu/gpu_$test"; done
# It runs kernels some hundred times slower; the sizes of these tests are made for that.
sanitizer=$(command -v compute-sanitizer || echo /usr/local/cuda/bin/compute-sanitizer)
for tool in memcheck racecheck synccheck initcheck; do
  for test in device linear attention pick; do
    if [ -x "$sanitizer" ]; then
      check "$tool $test" "$sanitizer" --tool "$tool" --error-exitcode 1 --print-limit 5 "$build/tests/gpu/gpu_$test"
    else
      skipped=$((skipped + 1))
    fi
  done
done
check spills tests/gpu/spills.sh "$architecture"
finish
