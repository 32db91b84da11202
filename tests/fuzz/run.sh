#!/usr/bin/env bash
# Fuzzes what reads outside input, under ASan and UBSan: run.sh [SECONDS [TARGET...]]
#
# Each target of this folder for SECONDS (30), two at a time. The inputs begin with those that fuzz_seeds writes; what
# reached something new is kept in build-fuzz/corpus for the next run. An input that crashes, breaks what must hold,
# takes more than 10 s or 64 MB at once is a finding: it is kept in build-fuzz/findings, and the exit status is 1. To
# see one again: build-fuzz/tests/fuzz/fuzz_TARGET FILE.
set -euo pipefail
cd "$(dirname "$0")/../.."
seconds=${1:-30}
[ $# = 0 ] || shift
targets=("$@")
[ ${#targets[@]} -gt 0 ] || targets=(gguf tokenizer plan wire front batch)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
{ cmake --preset fuzz && cmake --build --preset fuzz; } >"$log" 2>&1 || { tail -n 40 "$log" >&2; exit 1; }

folder=build-fuzz
programs=$PWD/$folder/tests/fuzz
mkdir -p "$folder/corpus" "$folder/findings"
"$programs/fuzz_seeds" "$folder/corpus" launch/examples/*.json

fuzz() {
  local target=$1 status=0 output=$folder/fuzz_$1.log inputs
  "$programs/fuzz_$target" -max_total_time="$seconds" -timeout=10 -malloc_limit_mb=64 -rss_limit_mb=2048 \
    -max_len=32768 -print_final_stats=1 -artifact_prefix="$folder/findings/$target-" "$folder/corpus/$target" \
    >"$output" 2>&1 || status=$?
  inputs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$output")
  if [ "$status" = 0 ] && [ "${inputs:-0}" -gt 0 ]; then
    echo "fuzz $target: $inputs inputs in $seconds s, no finding"
  else
    grep -E "ERROR|SUMMARY|runtime error|Test unit written|^    #[0-9]+ .* in .*(runtime|kernels|partition|launch)/" \
      "$output" | head -n 20 >&2
    echo "fuzz $target: FAILED after ${inputs:-0} inputs; see $output"
    return 1
  fi
}

failed=0
for ((i = 0; i < ${#targets[@]}; i += 2)); do
  running=()
  for target in "${targets[@]:i:2}"; do
    fuzz "$target" &
    running+=($!)
  done
  for process in "${running[@]}"; do wait "$process" || failed=1; done
done
exit "$failed"
