#!/usr/bin/env bash
# Everything that needs a GPU, in one go: run.sh [OPTION…]
#
# Checks every operation of the CUDA device against the CPU's oracle, measures what the GPU can do and how near the
# operations come, runs whole models at one and two ranks against reference outputs, measures the program end to end and
# PyTorch beside it, and runs the operations again under compute-sanitizer. Then the figures, as a table with their
# bounds; the last line is 'N passed, N failed, N skipped'.
#
# It builds what it runs, for the GPU that is there; that takes what the project needs. A machine with a GPU and little
# else runs what bundle.sh made elsewhere. The README beside this says how.
#
#   --built FOLDER   run these programs (bundle.sh's) instead of building
#   --parts LIST     only these, with commas: operations, links, limits, kernels, models, bench, peer, sanitizer, spills
#   --json FILE      all results as JSON; FILE.lines has each as a line as soon as it is there
#   --continue       with --json: leave out what FILE.lines says has passed, so that several calls make one whole
#   --seconds N      end within N seconds; what is left is skipped
#   --device cpu     the parts models, kernels and bench on the CPU, the latter tiny: to try this script
#   PENSTOCK_TEST_MODEL, PENSTOCK_TEST_GEMMA: the models' files; else FOLDER's, else fetched. PYTHON: another python3
set -uo pipefail
complain() { echo "run.sh: $*" >&2; }
usage() { complain "$*; its options stand at its top"; exit 2; }

built='' parts='' json='' continues='' seconds='' device=cuda
while [ $# -gt 0 ]; do
  case $1 in
  --continue) continues=yes; shift; continue ;;
  --built | --parts | --json | --seconds | --device) [ $# -gt 1 ] || usage "$1 lacks its value" ;;
  *) usage "$1 is no option" ;;
  esac
  case $1 in
  --built) built=$(realpath -e "$2") || usage "there is no folder $2" ;;
  --parts) parts=$2 ;;
  --json) json=$(realpath "$2") ;;
  --seconds) seconds=$2 ;;
  --device) device=$2 ;;
  esac
  shift 2
done
[[ $seconds =~ ^[0-9]*$ ]] || usage "--seconds $seconds is no number"
[[ $device =~ ^(cuda|cpu)$ ]] || usage "--device is cuda or cpu"
[ -z "$continues" ] || [ -n "$json" ] || usage "--continue needs --json"
all=operations,links,limits,kernels,models,bench,peer,sanitizer,spills
[ "$device" = cuda ] || all=kernels,models,bench
parts=${parts:-$all}
for part in ${parts//,/ }; do
  [[ ,$all, = *,$part,* ]] || usage "--parts $part: on this device there are $all"
done
deadline=$((SECONDS + ${seconds:-1000000}))
cd "$(dirname "$0")/../.." || exit 1

passed=0 failed=0 skipped=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
lines=$work/lines
[ -z "$json" ] || lines=$json.lines
mkdir -p "$(dirname "$lines")"
[ -n "$continues" ] || : >"$lines"
touch "$lines"
python=$(command -v "${PYTHON:-python3}") || complain "there is no Python: only operations are checked"
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_rmaps_base_oversubscribe=1
export XDG_CACHE_HOME=${XDG_CACHE_HOME:-$work/cache} PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1

say() { printf '== %s\n' "$*"; }
wants() { [[ ,$parts, = *,$1,* ]]; }
finish() {
  local reported=0
  if [ -n "$python" ]; then
    say figures
    "$python" tests/gpu/report.py "$lines" ${json:+--json "$json"} || reported=1
  fi
  printf '%d passed, %d failed, %d skipped\n' "$passed" "$failed" "$skipped"
  [ "$failed" = 0 ] && [ "$passed" -gt 0 ] && [ "$reported" = 0 ]
  exit
}

# count PART NAME OUTCOME [SECONDS]
count() {
  printf '{"kind": "check", "part": "%s", "name": "%s", "outcome": "%s", "seconds": %d}\n' "$1" "$2" "$3" "${4:-0}" \
    >>"$lines"
  case $3 in
  passed) passed=$((passed + 1)) ;;
  failed) failed=$((failed + 1)) ;;
  *) skipped=$((skipped + 1)) ;;
  esac
}
skip() { say "$1: $2: skipped: $3"; count "$1" "$2" skipped; }

# run PART NAME LIMIT COMMAND…: counts it; 77 is a test that was skipped. A command gets LIMIT seconds, or those that are
# left; one that had less than LIMIT, or is slow for the tool that watches it, has not failed. With `measures` set, its
# standard output is lines for the report.
run() {
  local part=$1 name=$2 limit=$3 left=$((deadline - SECONDS)) begin=$SECONDS status
  shift 3
  if [ -n "$continues" ] && grep -q "\"part\": \"$part\", \"name\": \"$name\", \"outcome\": \"passed\"" "$lines"; then
    say "$part: $name: passed before"
    passed=$((passed + 1))
    return
  fi
  if [ "$left" -lt 10 ]; then skip "$part" "$name" "no time is left"; return; fi
  say "$part: $name"
  local given=$((limit < left ? limit : left))
  if [ -n "${measures:-}" ]; then
    timeout --kill-after=10 "$given" "$@" >"$work/out"
    status=$?
    grep '^{.*}$' "$work/out" >>"$lines" # whole ones
  else
    timeout --kill-after=10 "$given" "$@"
    status=$?
  fi
  case $status in
  0) count "$part" "$name" passed $((SECONDS - begin)) ;;
  77) count "$part" "$name" skipped ;;
  124 | 137)
    complain "$part: $name: not done after $given s"
    if [ "$given" -lt "$limit" ] || [ "$part" = sanitizer ]; then
      count "$part" "$name" skipped "$given"
    else
      count "$part" "$name" failed "$given"
    fi
    ;;
  *)
    complain "$part: $name failed ($status)"
    count "$part" "$name" failed $((SECONDS - begin))
    ;;
  esac
}
# needs_python PART: whether the part can run.
needs_python() { [ -n "$python" ] || { skip "$1" all "there is no Python"; return 1; }; }

architecture=''
if [ "$device" = cuda ]; then
  if ! machine=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader | head -n 1) ||
    [ -z "$machine" ]; then
    complain "there is no GPU"
    count machine gpu failed
    finish
  fi
  say "$machine"
  architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -n 1 | tr -d .)
  IFS=, read -r gpu driver memory <<<"$machine"
  printf '{"kind": "machine", "gpu": "%s", "driver": "%s", "memory": "%s", "cores": %d}\n' "$gpu" "${driver# }" \
    "${memory# }" "$(nproc)" >>"$lines"
fi

# ---- The programs ----------------------------------------------------------------------------------------------------

build() {
  local options=(-DPENSTOCK_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES="$architecture") targets=(penstock gpu_tests)
  [ "$device" = cuda ] || options=(-DPENSTOCK_CUDA=OFF) targets=(penstock bench_cuda)
  cmake -S . -B build-gpu -DCMAKE_BUILD_TYPE=Release "${options[@]}" &&
    cmake --build build-gpu --target "${targets[@]}" -j "$(nproc)"
}
if [ -n "$built" ]; then
  penstock=$built/bin/penstock tests=$built/bin mpirun=$built/bin/mpirun
else
  say "building${architecture:+ for compute capability $architecture}"
  mkdir -p build-gpu
  build >build-gpu/run.log 2>&1 || {
    tail -n 40 build-gpu/run.log >&2
    count build all failed
    finish
  }
  penstock=$PWD/build-gpu/penstock tests=$PWD/build-gpu/tests/gpu
  mpirun=$(command -v mpirun) || { complain "there is no mpirun"; count build mpirun failed; finish; }
fi
bench=$tests/gpu_bench
[ -x "$bench" ] || bench=$tests/bench_cuda

# cuBLASLt and NCCL are opened when they are used: where the loader does not know them, the toolkit or a Python package
# may have them.
library_folders() {
  ldconfig -p 2>/dev/null | grep -q libcublasLt || ls -d "${CUDA_HOME:-/usr/local/cuda}/lib64" 2>/dev/null
  [ -z "$python" ] || "$python" -c '
import glob, importlib.util
spec = importlib.util.find_spec("nvidia")
for folder in spec.submodule_search_locations if spec else []:
    print(*glob.glob(folder + "/c*/lib"), *glob.glob(folder + "/nccl/lib"), sep="\n")'
}
found=$(library_folders | sed '/^$/d' | paste -sd:)
ours=(env "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}${LD_LIBRARY_PATH:+:}$found")

# model NAME PATTERN VARIABLE: the path of a model, or nothing.
model() {
  if [ -n "${!3:-}" ]; then
    echo "${!3}"
  elif [ -n "$built" ]; then
    find "$built/models" -name "$2" 2>/dev/null | head -n 1
  else
    launch/fetch-model.sh "$1"
  fi
}
smollm2=$(model smollm2 '*[sS]mol[lL][mM]2*.gguf' PENSTOCK_TEST_MODEL)
gemma3=$(model gemma3 '*gemma*3*.gguf' PENSTOCK_TEST_GEMMA)

# ---- The parts -------------------------------------------------------------------------------------------------------

# Those of test_cuda_*.c.
operations=()
for program in "$tests"/gpu_*; do
  name=${program##*/gpu_}
  [[ $name =~ ^(bench|limits|link_run|\*)$ ]] || operations+=("$name")
done
if wants operations; then
  [ ${#operations[@]} -gt 0 ] || { complain "there are no tests in $tests"; count operations all failed; }
  for name in "${operations[@]}"; do run operations "$name" 240 "${ours[@]}" "$tests/gpu_$name"; done
fi

# Rows from GPU to GPU. Two ranks on one GPU get NCCL only from versions that allow it, where it is asked for; that they
# cannot have it here (status 4) is no failure.
if wants links; then
  ranks=("$mpirun" --bind-to none -np)
  for n in 2 3; do
    run links "mpi, $n ranks" 60 "${ours[@]}" "${ranks[@]}" "$n" "$tests/gpu_link_run" --device cuda --link mpi
  done
  # shellcheck disable=SC2016 # the inner shell's
  run links "nccl, 2 ranks" 90 "${ours[@]}" NCCL_MULTI_RANK_GPU_ENABLE=1 bash -c '"$@" || exit $(($? == 4 ? 77 : $?))' \
    link "${ranks[@]}" 2 "$tests/gpu_link_run" --device cuda --link nccl
fi

if wants limits; then
  if [ -x "$tests/gpu_limits" ]; then
    measures=yes run limits all 120 "${ours[@]}" "$tests/gpu_limits"
  else
    skip limits all "it was built without cuBLASLt"
  fi
fi

if wants kernels; then
  options=(--device "$device")
  types=(bf16 f16 f32 q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl mxfp4)
  [ "$device" = cuda ] || { options+=(--tiny); types=(bf16 q4_k); }
  measures=yes run kernels attention 120 "${ours[@]}" "$bench" "${options[@]}" --only attention
  measures=yes run kernels small 120 "${ours[@]}" "$bench" "${options[@]}" --only small
  for type in "${types[@]}"; do
    measures=yes run kernels "$type" 120 "${ours[@]}" "$bench" "${options[@]}" --only products --types "$type"
  done
  # The own kernels at many rows, where cuBLASLt is faster.
  [ "$device" = cpu ] || measures=yes run kernels "bf16 and q4_k, deterministic" 120 "${ours[@]}" "$bench" \
    "${options[@]}" --only products --types bf16,q4_k --rows 64,512,2048 --deterministic
fi

# reference NAME FILE MODEL [MODE RANKS VARIABLE…]: those outputs; without the rest in each mode apart, as either may take
# long, at one and two ranks.
reference() {
  if [ -z "$3" ]; then skip models "$1" "there is no model"; return; fi
  if [ $# = 3 ]; then
    # What does not depend on how many rows go together is the same for all numbers of ranks.
    reference "$1 fast" "$2" "$3" fast 1,2 PENSTOCK_DETERMINISTIC=1
    reference "$1 f32" "$2" "$3" f32 1,2 PENSTOCK_DETERMINISTIC=1
    return
  fi
  run models "$1" 300 "${ours[@]}" "${@:6}" "$python" tests/reference/compare.py --penstock "$penstock" \
    --mpirun "$mpirun" --model "$3" --device "$device" --modes "$4" --ranks "$5" "tests/reference/$2"
}
if wants models && needs_python models; then
  reference smollm2 smollm2-135m-instruct-q4_1.json "$smollm2"
  reference gemma3 gemma-3-270m-q4_k_m.json "$gemma3"
  if [ "$device" = cuda ]; then
    reference "smollm2, the fastest way" smollm2-135m-instruct-q4_1.json "$smollm2" fast 1
    run models "same tokens" 500 "${ours[@]}" PENSTOCK_DETERMINISTIC=1 "$python" tests/mpi/same_tokens.py "$penstock" \
      "$mpirun" --device cuda
  fi
fi

if wants bench && needs_python bench; then
  options=(--penstock "$penstock" --mpirun "$mpirun" --device "$device")
  [ -z "$smollm2" ] || options+=(--smollm2 "$smollm2")
  [ "$device" = cuda ] || options+=(--tiny)
  for load in "8b bf16" "8b q4_k" smollm2 "8b bf16 x64" "8b q4_k x64" "8b bf16, 2 ranks" "8b bf16, deterministic" \
    "smollm2, eager"; do
    if [[ $load = smollm2* ]] && [ -z "$smollm2" ]; then skip bench "$load" "there is no model"; continue; fi
    measures=yes run bench "$load" 200 "${ours[@]}" "$python" tests/gpu/bench.py "${options[@]}" --only "$load"
  done
fi

if wants peer && needs_python peer; then measures=yes run peer transformers 400 "$python" tests/gpu/peer.py; fi

# It runs kernels some hundred times slower; the sizes of these tests are made for that.
if wants sanitizer; then
  sanitizer=$(command -v compute-sanitizer || echo "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer")
  for tool in memcheck racecheck synccheck initcheck; do
    for name in "${operations[@]}"; do
      [ "$name" != stage ] || continue # whole models, of the same operations
      if [ -x "$sanitizer" ]; then
        run sanitizer "$tool $name" 280 "${ours[@]}" "$sanitizer" --tool "$tool" --target-processes all \
          --error-exitcode 1 --print-limit 5 "$tests/gpu_$name"
      else
        skip sanitizer "$tool $name" "there is no compute-sanitizer"
      fi
    done
  done
fi

if wants spills; then run spills all 400 tests/gpu/spills.sh "$architecture"; fi
finish
