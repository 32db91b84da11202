#!/usr/bin/env bash
# The pipeline on more devices than there are, and what the simulator says of it: scale.sh [--parts LIST] [--json FILE]
# (see scale.py for the rest). Simulated devices take no core, but waking 64 processes does: the bounds are for two
# cores of one's own, and a run that misses one is tried again. The default takes about five minutes.
#
# PENSTOCK_TEST_MODEL and PENSTOCK_TEST_GEMMA name the models that run for real beside their simulation.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock bench_schedule >&2

exec python3 tests/bench/scale.py build mpirun "$@"
