#!/usr/bin/env bash
# 10,000 requests through 3 ranks with KV for a fraction of what they want: all end exactly once and as expected, and no
# process grows (engine_pressure.c). The model has layers with windows and without: both kinds of KV pools.
#
#   pressure.sh ENGINE_RUN [REQUESTS]
set -u
program=$1 requests=${2:-10000} growth_kib=1024
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
model=synthetic:gemma3:layers=6,hidden=32,ffn=32,heads=2,kv_heads=1,vocab=300,window=33,type=q4_0

# --prompt is the context, more than all KV blocks hold: requests in between fit the one and never the other. What may
# still grow are the last stage's histories, up to the largest vocabulary of a slot.
out=$(ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} mpirun --oversubscribe -np 3 "$program" --pressure "$requests" \
    --prompt 5000 --sequences 128 --blocks 254 --rows 64 --model $model) || { echo "FAIL: $out"; exit 1; }
echo "$out"
some='[1-9][0-9]*'
expected="^$requests requests in [0-9.]+ s: $some to their length, $some stopped, $some cancelled, $some scored,"
expected+=" $some refused; $some heard alone; 0 wrong; $some$some pauses, $some of $some prompt tokens found, 0 blocks held"
grep -qE "$expected" <<<"$out" || { echo "FAIL: not as expected"; exit 1; }
[ "$(grep -c resident <<<"$out")" = 3 ] || { echo "FAIL: not 3 ranks"; exit 1; }
while read -r _ rank _ early _ _ _ _ late _; do
    [ "$early" -gt 0 ] && [ "$late" -le $((early + growth_kib)) ] || { echo "FAIL: rank $rank has grown"; exit 1; }
done < <(grep resident <<<"$out")
