#!/usr/bin/env bash
# Penstock's speed beside llama.cpp's: cpu.sh [--threads N] [--rounds N] [--json FILE]   (see cpu.py for the rest)
#
# The same file, the same token ids, the same number of threads, in turns. PENSTOCK_BENCH_LLAMA_PYTHON names a Python
# that has llama-cpp-python 0.3.36; without it one is made in build/bench, which compiles llama.cpp from source (about
# ten minutes on two cores, and a C++ compiler is needed). Leave the machine alone while it measures.
set -euo pipefail
cd "$(dirname "$0")/../.."

model=${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}
[ -x build/penstock ] || { cmake --preset release && cmake --build build --target penstock; } >&2

python=${PENSTOCK_BENCH_LLAMA_PYTHON:-$PWD/build/bench/bin/python}
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
  echo "cpu.sh: building llama.cpp (llama-cpp-python 0.3.36) in build/bench; about ten minutes" >&2
  python3 -m venv build/bench
  python=$PWD/build/bench/bin/python
  "$python" -m pip install --quiet --disable-pip-version-check llama-cpp-python==0.3.36
fi
exec "$python" tests/bench/cpu.py --penstock build/penstock --model "$model" "$@"
