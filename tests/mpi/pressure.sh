#!/usr/bin/env bash
# 10,000 requests through 3 ranks with KV for a fraction of what they want: all end exactly once and as expected, and no
# process grows (engine_pressure.c). The model has layers with windows and without: both kinds of KV pools. Then some
# more, among which a prompt of 4,000 tokens takes the KV of everybody else now and then.
#
#   pressure.sh ENGINE_RUN [REQUESTS]
set -u
program=$1 requests=${2:-10000} growth_kib=1024
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
# What ASan keeps of freed memory would look like growth; the leaks that it finds by itself are Open MPI's.
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0:quarantine_size_mb=1}
model=synthetic:gemma3:layers=6,hidden=32,ffn=32,heads=2,kv_heads=1,vocab=300,window=33,type=q4_0
some='[1-9][0-9]*'

# pressure REQUESTS SEQUENCES BLOCKS PAUSES: of the last there are as many as this matches. What is said is in $out.
pressure() {
    # --prompt is the context, more than all KV holds: requests in between fit the one and never the other.
    out=$(mpirun --oversubscribe -np 3 "$program" --pressure "$1" --sequences "$2" --blocks "$3" --prompt 5000 --rows 64 \
        --preempts --model $model) || { echo "FAIL: $out"; return 1; }
    echo "$out"
    local expected="^$1 requests in [0-9.]+ s, $some refused, 0 wrong; completions: $some to their length, "
    expected+="$some stopped, $some cancelled, $some scored, $some heard alone, too; $4 pauses, $some preemptions, "
    expected+="$some of $some prompt tokens found, $some blocks copied, 0 blocks held"
    grep -qE "$expected" <<<"$out" || { echo "FAIL: not as expected"; return 1; }
}

# What may still grow are the last stage's histories, up to a slot's largest vocabulary.
is_flat() {
    local rank early late ranks=0
    while read -r _ rank _ early _ _ _ _ late _; do
        [ "$early" -gt 0 ] && [ "$late" -le $((early + growth_kib)) ] ||
            { echo "FAIL: rank $rank has grown"; return 1; }
        ranks=$((ranks + 1))
    done < <(grep resident <<<"$out")
    [ $ranks = 3 ] || { echo "FAIL: not 3 ranks"; return 1; }
}

pressure "$requests" 32 18 "$some" && is_flat && pressure $((requests / 5)) 128 254 '[0-9]+'
