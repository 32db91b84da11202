#!/usr/bin/env bash
# What the distributor is worth: replicas under skewed loads, every policy with and without stealing:
# balance.sh [--cases LIST] [--svg FILE] [--markdown FILE] [--json FILE] (see balance.py for the rest).
#
# Simulated replicas take no core, and several runs go on at a time. PENSTOCK_TEST_MODEL names the model of the real
# ones; those bounds are for two cores of one's own. The default takes about seven minutes.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock >&2

exec python3 tests/bench/balance.py build mpirun "$@"
