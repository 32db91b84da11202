#!/usr/bin/env bash
# A rank is killed or stopped while the job loads, prefills or decodes (ENGINE_RUN) or profiles (PENSTOCK): the job must be
# gone within seconds, all of its processes with it; and of a stopped rank the others must say which it is, in one line.
#
#   faults.sh ENGINE_RUN PENSTOCK kill|stop [RANKS]
set -u
program=$1 penstock=$2 fault=$3 ranks=${4:-3}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
timeout_s=2
limit_s=15 # for mpirun to end: the step timeout, the staggered patience, and the launcher's own seconds
failures=0

fail() {
    echo "FAIL: $*"
    sed 's/^/    /' "$work/out" "$work/err"
    failures=$((failures + 1))
}

model=synthetic:llama:layers=12,hidden=512,ffn=2048,heads=8,kv_heads=4,vocab=8192,context=32768,type=q4_0

# announce_profiling JOB: says of PENSTOCK's processes what ENGINE_RUN says by itself.
announce_profiling() {
    local i pids
    for ((i = 0; i < 200; i++)); do
        read -ra pids <"/proc/$1/task/$1/children"
        [ ${#pids[@]} -eq "$ranks" ] && break
        sleep 0.05
    done
    for ((i = 0; i < ${#pids[@]}; i++)); do
        echo "rank $(tr '\0' '\n' <"/proc/${pids[i]}/environ" | sed -n 's/^OMPI_COMM_WORLD_RANK=//p') pid ${pids[i]} profiling"
    done >>"$work/out"
}

# pid_of RANK PHASE: waits until the rank has announced the phase.
pid_of() {
    local line i
    for ((i = 0; i < 600; i++)); do
        line=$(grep -m1 "^rank $1 pid [0-9]* $2\$" "$work/out") && { set -- $line; echo "$4"; return 0; }
        sleep 0.05
    done
    return 1
}

# Those of the PIDs that are still there a second later; a zombie is gone, its parent has just not looked.
left_of() {
    local pid left i
    for ((i = 0; i < 20; i++)); do
        left=""
        for pid in "$@"; do
            grep -q '^State:[[:space:]]*[^Z[:space:]]' "/proc/$pid/status" 2>/dev/null && left="$left $pid"
        done
        [ -n "$left" ] || return
        sleep 0.05
    done
    echo "$left"
}

# One case: the fault hits RANK at PHASE. The prompts take seconds to read, the output takes minutes.
try() {
    local rank=$1 phase=$2 announced=running prompt=3000 delay=0.3 pid pids began=$SECONDS code i
    case $phase in
    loading) announced=loading delay=0.02 ;;
    decoding) prompt=20 delay=0.7 ;;
    profiling) announced=profiling delay=1 ;;
    esac
    : >"$work/out" >"$work/err"
    local command=("$program" --announce --timeout $timeout_s --requests 2 --prompt $prompt --output 20000 --model "$model")
    [ "$phase" = profiling ] && command=("$penstock" run "$model" -p x -n 2 --cache - --step-timeout $timeout_s)
    mpirun --oversubscribe -np "$ranks" "${command[@]}" >"$work/out" 2>"$work/err" &
    local job=$!
    [ "$phase" = profiling ] && announce_profiling $job
    for ((i = 0; i < ranks; i++)); do pid_of $i "$announced" >/dev/null || break; done
    pid=$(pid_of "$rank" "$announced") || { fail "rank $rank never got to $announced"; kill $job; wait $job; return; }
    pids=$(sed -n 's/^rank [0-9]* pid \([0-9]*\) .*/\1/p' "$work/out" | sort -u)
    sleep $delay
    began=$SECONDS
    if [ "$fault" = kill ]; then kill -KILL "$pid"; else kill -STOP "$pid"; fi
    for ((i = 0; i < limit_s * 10; i++)); do kill -0 $job 2>/dev/null || break; sleep 0.1; done
    if kill -0 $job 2>/dev/null; then
        fail "$fault of rank $rank while $phase: mpirun still runs after $limit_s s"
        kill -KILL $pids $job 2>/dev/null
        wait $job
        return
    fi
    wait $job
    code=$?
    local left
    left=$(left_of $pids)
    [ -z "$left" ] || { fail "$fault of rank $rank while $phase: processes are left:$left"; kill -KILL $left; }
    [ $code -ne 0 ] || fail "$fault of rank $rank while $phase: exit code 0"
    if [ "$fault" = stop ]; then
        [ $code -eq 7 ] || fail "stop of rank $rank while $phase: exit code $code, not 7"
        [ "$(grep -c '^penstock:' "$work/err")" = 1 ] || fail "stop of rank $rank while $phase: not one line"
        # At start-up, to whose end the others may have come meanwhile, the wait is named; in the run the link and step.
        local run="^penstock: rank $rank (stage $rank on .*) did not answer for .* link mpi, step "
        local start="^penstock: lost rank $rank (stage $rank on .*) while .*silent for"
        [[ $phase = loading || $phase = profiling ]] || start=$run
        grep -q -e "$run" -e "$start" "$work/err" || fail "stop of rank $rank while $phase: the rank is not named"
    fi
    echo "$fault of rank $rank while $phase: code $code after $((SECONDS - began)) s: $(grep -m1 '^penstock:' "$work/err")"
}

for phase in profiling loading prefilling decoding; do
    for ((r = 0; r < ranks; r++)); do try $r $phase; done
done
exit $((failures > 0))
