#!/usr/bin/env bash
# Penstock's pipeline beside its single process and llama.cpp's two ways: pipeline.sh [MODEL] [--rounds N] [--json FILE]
# (see pipeline.py for the rest). MODEL is the demonstration model unless one is named.
#
# PENSTOCK_BENCH_LLAMA names a folder with llama.cpp's llama-batched-bench and rpc-server (or ggml-rpc-server), built
# for this machine; without it llama.cpp's lines are left out. Leave the machine alone while it measures: the bounds
# are for two cores of one's own. The default takes about six minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=
if [ $# -gt 0 ] && [[ $1 != -* ]]; then model=$1; shift; fi
model=${model:-${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}}
[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock bench_limits >&2

exec python3 tests/bench/pipeline.py build mpirun "$model" ${PENSTOCK_BENCH_LLAMA:+--llama "$PENSTOCK_BENCH_LLAMA"} "$@"
