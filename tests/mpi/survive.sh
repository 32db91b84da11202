#!/usr/bin/env bash
# Ranks that outlive another (mpirun --enable-recovery), and SIGUSR1, as the launcher sees them.   survive.sh SURVIVE
set -u
survive=$1
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failures=0

fail() {
    echo "FAIL: $*"
    grep -v '^line' "$work/out" "$work/err" | sed 's/^/    /'
    failures=$((failures + 1))
}

# try MODE CODE LINES: four ranks of which rank 1 is lost.
try() {
    local code lines saw pid
    timeout -k 5 20 mpirun --oversubscribe -np 4 --enable-recovery "$survive" "$1" >"$work/out" 2>"$work/err"
    code=$?
    [ $code -eq "$2" ] || fail "$1: exit code $code, not $2"
    lines=$(grep -c '^line [0-9]* of what rank 0 has to say before it leaves$' "$work/out")
    [ "$lines" -ge "$3" ] || fail "$1: $lines lines of rank 0, not $3"
    saw=$(grep -c 'sees the end of rank 1' "$work/err")
    [ "$saw" -eq 3 ] || fail "$1: $saw ranks saw the end of rank 1, not 3"
    sleep 0.2
    for pid in $(sed -n 's/^rank [0-9]* is up: pid //p' "$work/err"); do
        [ ! -e "/proc/$pid/exe" ] || fail "$1: process $pid is left"
    done
    echo "$1: code $code, $lines lines"
}

try finish 0 20000
try drop 0 20000
grep -q '^penstock: the replica of rank 3 is lost$' "$work/err" || fail "drop: rank 3 does not say why"
grep -q '^rank 0 sees the end of rank 3$' "$work/err" || fail "drop: rank 0 has not seen it"
try abort 1 0
grep -q '^penstock: rank 0 has had enough$' "$work/err" || fail "abort: rank 0 does not say why"

mpirun --oversubscribe -np 3 "$survive" drain >"$work/out" 2>"$work/err" &
job=$!
for ((i = 0; i < 100; i++)); do
    [ "$(grep -c 'is up' "$work/err")" = 3 ] && break
    sleep 0.1
done
kill -USR1 $job
wait $job
code=$?
[ $code -eq 8 ] || fail "drain: exit code $code, not 8"
[ "$(grep -c drains "$work/err")" -eq 3 ] || fail "drain: not all ranks heard of it"
echo "drain: code $code"
exit $((failures > 0))
