#!/usr/bin/env bash
# The same tokens in more than 500 random schedules: requests that begin while others run, that want several choices,
# that give up, that are cancelled, that go on where they had been before, that begin alike, that put one another aside,
# with little KV, on 1 to 4 ranks, several models, chunk sizes and depths.
#
#   schedules.sh ENGINE_RUN
set -u
program=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
gemma=synthetic:gemma3:layers=7,hidden=64,ffn=96,heads=4,kv_heads=1,vocab=300,window=33,type=q4_0
window=synthetic:llama:layers=4,hidden=96,ffn=160,heads=6,kv_heads=2,vocab=331,window=50,type=q8_0
failures=0 total=0 pauses=0 preemptions=0 some='[1-9][0-9]*'

# play RANKS ARGUMENT...
play() {
    local ranks=$1 line
    shift
    line=$(ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe -np "$ranks" "$program" --prompt 180 "$@") || line="failed: $line"
    echo "np $ranks $*: $line"
    local expected="^([0-9]+) schedules, $some tokens, 0 differences, $some given up, $some cancelled, $some continued, "
    expected+="([0-9]+) pauses, ([0-9]+) preemptions, $some of $some prompt tokens found, $some forks, $some blocks copied, "
    expected+="0 blocks held$"
    if [[ $line =~ $expected ]]; then
        total=$((total + BASH_REMATCH[1])) pauses=$((pauses + BASH_REMATCH[2])) preemptions=$((preemptions + BASH_REMATCH[3]))
    else
        failures=$((failures + 1))
    fi
}

play 1 --schedules 200 --sequences 6 --blocks 18 --rows 200 --preempts
play 1 --schedules 60 --sequences 5 --blocks 16 --rows 7 --threads 2 --model $gemma
play 2 --schedules 70 --sequences 8 --blocks 20 --rows 33 --seed 1
play 2 --schedules 50 --sequences 6 --blocks 16 --rows 64 --seed 2 --model $window --preempts
play 3 --schedules 60 --sequences 6 --blocks 18 --rows 17 --seed 3 --in-flight 2 --preempts
play 3 --schedules 40 --sequences 4 --blocks 16 --rows 48 --seed 4 --model $gemma --preempts
play 4 --schedules 40 --sequences 10 --blocks 22 --rows 100 --seed 5 --exact --preempts
play 4 --schedules 40 --sequences 7 --blocks 18 --rows 5 --seed 6 --in-flight 8
echo "$total schedules, $pauses pauses, $preemptions preemptions"
[ "$total" -ge 500 ] && [ "$pauses" -ge 50 ] && [ "$preemptions" -ge 100 ] && [ "$failures" = 0 ]
