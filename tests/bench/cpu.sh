#!/usr/bin/env bash
# Penstock's speed on a CPU beside llama.cpp's and the machine's limits: cpu.sh [--threads N] [--rounds N] [--only WORDS]
# [--json FILE] [--markdown FILE] [--svg FILE]   (see cpu.py for the rest)
#
# Models: SmolLM2, Gemma 3 (PENSTOCK_TEST_MODEL and PENSTOCK_TEST_GEMMA, or fetched), and files of Llama-3.2-1B's shape
# with random weights, which are made in build/bench (2.8 GB) by a Python with the packages of tests/requirements.txt:
# PENSTOCK_TEST_PYTHON, or one that is set up there.
#
# PENSTOCK_BENCH_LLAMA names a folder with llama.cpp's llama-batched-bench, built for this machine; without it the source
# in PyPI's package llama-cpp-python 0.3.36 is built in build/bench (about twenty minutes on two cores, and a C++ compiler
# is needed). PENSTOCK_BENCH_IK names the same of ik_llama.cpp; without it that is left out. Leave the machine alone while
# it measures, about twenty minutes on two cores.
set -euo pipefail
cd "$(dirname "$0")/../.."

[ -d build ] || cmake --preset release >&2
cmake --build build --target penstock bench_limits >&2
mkdir -p build/bench

llama=${PENSTOCK_BENCH_LLAMA:-$PWD/build/bench/llama/bin}
if [ ! -x "$llama/llama-batched-bench" ]; then
  echo "cpu.sh: building llama.cpp (of llama-cpp-python 0.3.36) in build/bench" >&2
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
    --dest build/bench llama-cpp-python==0.3.36
  tar -xzf build/bench/llama_cpp_python-0.3.36.tar.gz -C build/bench
  cmake -S build/bench/llama_cpp_python-0.3.36/vendor/llama.cpp -B build/bench/llama -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=OFF -DGGML_NATIVE=ON -DLLAMA_CURL=OFF -DLLAMA_BUILD_TESTS=OFF >&2
  cmake --build build/bench/llama --target llama-batched-bench -j "$(nproc)" >&2
fi

models=("SmolLM2 Q4_1=${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}"
        "Gemma 3 270M=${PENSTOCK_TEST_GEMMA:-$(launch/fetch-model.sh gemma3)}")
python=${PENSTOCK_TEST_PYTHON:-$PWD/build/bench/venv/bin/python}
for type in Q4_0 Q4_K Q8_0; do
  file=build/bench/random-1b-${type,,}.gguf
  if [ ! -f "$file" ]; then
    if [ ! -x "$python" ]; then
      python3 -m venv build/bench/venv
      "$python" -m pip install --quiet --disable-pip-version-check gguf==0.19.0
    fi
    echo "cpu.sh: writing $file" >&2
    "$python" tests/bench/random_model.py "$type" "$file"
  fi
  models+=("1B $type=$file")
done

exec python3 tests/bench/cpu.py build "${models[@]}" --llama "$llama" ${PENSTOCK_BENCH_IK:+--ik "$PENSTOCK_BENCH_IK"} "$@"
