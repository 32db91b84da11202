#!/usr/bin/env bash
# Replicas at random (front_run.c): policies, with and without stealing and preemption, long queues and short ones, much
# KV and little, on 1, 2 or 4 ranks.   front.sh FRONT_RUN RANKS [MPIRUN-OPTION...]
set -u
program=$1 ranks=$2
shift 2
options=("$@")
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
export ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=0} # those that it finds are Open MPI's
gemma=synthetic:gemma3:layers=7,hidden=64,ffn=96,heads=4,kv_heads=1,vocab=331,window=33,type=q4_0
some='[1-9][0-9]*' failures=0 stolen=0 full=0 expired=0 preemptions=0 pauses=0

# play ARGUMENT...
play() {
    local out
    out=$(timeout -k 5 120 mpirun --oversubscribe "${options[@]}" -np "$ranks" "$program" --seed $((++seed)) "$@" 2>&1) ||
        failures=$((failures + 1))
    echo "np $ranks $*: $out"
    local expected="([0-9]+) requests, $some tokens, 0 differences, $some stopped, $some cancelled, ([0-9]+) expired, "
    expected+="([0-9]+) times full, ([0-9]+) stolen, 0 lost
([0-9]+) pauses, ([0-9]+) preemptions, 0 blocks held\$"
    if [[ $out =~ $expected ]]; then
        expired=$((expired + BASH_REMATCH[2])) full=$((full + BASH_REMATCH[3])) stolen=$((stolen + BASH_REMATCH[4]))
        pauses=$((pauses + BASH_REMATCH[5])) preemptions=$((preemptions + BASH_REMATCH[6]))
    else
        echo "FAIL: not as expected"
        failures=$((failures + 1))
    fi
}

seed=$ranks
for ((replicas = ranks; replicas > 0; replicas /= 2)); do
    play --dp $replicas --steal --policy weighted
    play --dp $replicas --steal --preempts --policy round-robin --blocks 18 --max-queue 4
    play --dp $replicas --policy least-requests --queue-timeout 0.01 --sequences 2 --model $gemma
    play --dp $replicas --steal --policy least-cost --queue-timeout 0.03 --preempts --blocks 30 --max-queue 20 --rows 9
    play --dp $replicas --steal --policy round-robin --waves 4 --sequences 3 --max-queue 60 --model $gemma
done
echo "$expired expired, $full times full, $stolen stolen, $pauses pauses, $preemptions preemptions"
[ $expired -gt 0 ] && [ $full -gt 0 ] && [ $preemptions -gt 0 ] && { [ $stolen -gt 0 ] || [ "$ranks" = 1 ]; } &&
    [ $failures = 0 ]
