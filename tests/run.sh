#!/usr/bin/env bash
# Every test, from a bare Debian 12 with nothing but git: run.sh
#
# Installs what is missing, fetches the models, then runs everything in the release build, unit tests and the command
# line under ASan and UBSan, the thread pool under TSan, and each fuzzer for half a minute. The last line is 'N passed, N
# failed, N skipped'; failures make the exit status non-zero. Offline, what needs the models or Python packages is
# skipped or left out, and it says so.
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

passed=0 failed=0 skipped=0
say() { printf '== %s\n' "$*"; }
finish() {
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ]
  exit
}
fail() {
  echo "run.sh: $*" >&2
  failed=$((failed + 1))
}

log=$(mktemp)
trap 'rm -f "$log"' EXIT

# build PRESET TARGET…: what goes wrong is shown, and nothing else.
build() {
  say "building $1"
  { cmake --preset "$1" "${options[@]}" && cmake --build --preset "$1" --target "${@:2}"; } >"$log" 2>&1 ||
    { tail -n 60 "$log" >&2; fail "the $1 build failed"; return 1; }
}

# suite PRESET [ctest option…]: runs tests of a build, two at a time, and counts them. Those that measure time run alone.
suite() {
  local folder=build status all bad out
  [ "$1" = release ] || folder=build-$1
  say "testing $*"
  ctest --test-dir "$folder" --parallel 2 --timeout 600 --no-tests=error --output-on-failure --output-junit junit.xml \
    "${@:2}"
  status=$?
  all=$(count "$folder" tests) bad=$(count "$folder" failures)
  out=$(($(count "$folder" skipped) + $(count "$folder" disabled)))
  passed=$((passed + all - bad - out)) failed=$((failed + bad)) skipped=$((skipped + out))
  # Such as a test whose program is not there, or no test at all.
  [ "$status" = 0 ] || [ "$bad" -gt 0 ] || fail "ctest of $1 ended with $status"
}
count() { grep -o -m 1 "$2=\"[0-9]*\"" "$1/junit.xml" 2>/dev/null | tr -dc 0-9 | grep . || echo 0; }

# fuzz SECONDS: every fuzzer is a test.
fuzz() {
  say "fuzzing"
  tests/fuzz/run.sh "$1" | tee "$log"
  local good bad
  good=$(grep -c 'no finding$' "$log") bad=$(grep -c FAILED "$log")
  passed=$((passed + good)) failed=$((failed + bad))
  [ $((good + bad)) -gt 0 ] || fail "the fuzzers did not run"
}

launch/setup.sh --tests || { fail "packages are missing"; finish; }

# What the tests need besides: the models, and Python packages that serve as oracles. All are optional.
options=(-DBUILD_TESTING=ON -DCMAKE_CUDA_ARCHITECTURES=90)
[ -n "$(command -v nvcc)" ] || echo "run.sh: no nvcc: the CUDA device is tested with its emulation only" >&2
if model=${PENSTOCK_TEST_MODEL:-$(launch/fetch-model.sh)}; then options+=("-DPENSTOCK_TEST_MODEL=$model"); fi
if gemma=${PENSTOCK_TEST_GEMMA:-$(launch/fetch-model.sh gemma3)}; then options+=("-DPENSTOCK_TEST_GEMMA=$gemma"); fi
if [ -z "${PENSTOCK_TEST_PYTHON:-}" ]; then
  say "Python packages in .venv"
  # pip_install OPTION…: modules are compiled when they are first loaded, for most of them never are.
  pip_install() { .venv/bin/pip install --quiet --disable-pip-version-check --no-compile "$@" >>"$log" 2>&1; }
  if { [ -x .venv/bin/python ] || python3 -m venv .venv; } >"$log" 2>&1 && pip_install -r tests/requirements.txt; then
    PENSTOCK_TEST_PYTHON=$PWD/.venv/bin/python
    pip_install --no-deps --no-cache-dir -r tests/requirements-torch.txt || {
      tail -n 3 "$log" >&2
      echo "run.sh: no torch: the comparison of the architectures with transformers is skipped" >&2
    }
  else
    tail -n 3 "$log" >&2
    echo "run.sh: no Python packages: the comparison with transformers is left out" >&2
  fi
fi
[ -z "${PENSTOCK_TEST_PYTHON:-}" ] || options+=("-DPENSTOCK_TEST_PYTHON=$PENSTOCK_TEST_PYTHON")

build release all && suite release
build asan unit_tests penstock engine_run && suite asan -R '^unit\.|^cuda\.|^check\.cli$|^mpi\.same_(greedy|exact)$'
build tsan test_pool && suite tsan -R '^unit\.pool$'
fuzz 30
finish
