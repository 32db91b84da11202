#!/usr/bin/env bash
# How soon a model is ready, and what it holds in memory: start.sh [--rounds N] [--model FILE]… [--only PART,…]
#                                                                  [--json FILE]
#
# With the file in the page cache and a cached profile, one process and two ranks; start.py says how. Half a minute for
# a small model. Leave the machine alone while it measures.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=(--model "${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}")
for argument; do [ "$argument" = --model ] && model=(); done
[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock >&2
exec python3 tests/bench/start.py --penstock build/penstock "${model[@]}" "$@"
