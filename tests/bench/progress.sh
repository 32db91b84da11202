#!/usr/bin/env bash
# How the ranks wait: progress.sh [--rounds N] [--idle SECONDS] [--model FILE]… [--only PART,…] [--json FILE]
#
# The links' hard conditions beside the default, what an idle rank costs, how soon a waiting one wakes, each beside its
# bound; progress.py says how. About five minutes on two cores. Leave the machine alone while it measures.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=(--model "${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}")
for argument; do [ "$argument" = --model ] && model=(); done
[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock bench_trace >&2
exec python3 tests/bench/progress.py --penstock build/penstock "${model[@]}" "$@"
