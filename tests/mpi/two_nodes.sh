#!/usr/bin/env bash
# Two nodes, made of two network namespaces with a cable between them and host names of their own: the ranks of one can
# reach those of the other by TCP only. The same tokens as in one process, also with latency on the cable; a rank of the
# other node that stops is named; SIGUSR1 gets there; and a job that has lost a rank there ends.
#
#   two_nodes.sh PENSTOCK SURVIVE [MODEL]        77: namespaces are not allowed here
set -u
penstock=$(realpath "$1") survive=$(realpath "$2")
model=${3:-synthetic:llama:layers=8,hidden=256,ffn=512,heads=4,kv_heads=2,vocab=4096,type=q4_0}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failures=0

skip() {
    echo "SKIP: $*"
    exit 77
}

# Who is not root may be root of a user namespace.
if [ "$(id -u)" != 0 ] && [ -z "${PEN_TWO_NODES:-}" ]; then
    unshare --user --map-root-user true 2>/dev/null || skip "no user namespaces"
    PEN_TWO_NODES=1 exec unshare --user --map-root-user "$0" "$@"
fi
command -v ip nsenter >/dev/null || skip "no ip or nsenter"

work=$(mktemp -d)
holders=()
trap 'kill "${holders[@]}" 2>/dev/null; rm -rf "$work"' EXIT

# ---- The nodes: namespaces live as long as the process that holds them ----------------------------------------------
declare -A node # host name → process
for host in pen-a pen-b; do
    mkfifo "$work/$host.up"
    unshare --net --uts sh -c "hostname $host && echo up >$work/$host.up && exec sleep 300" 2>"$work/err" &
    holders+=($!)
    node[$host]=$!
    echo $! >"$work/$host.pid"
    read -rt 5 _ <>"$work/$host.up" || skip "no network namespaces: $(cat "$work/err")"
done
on() { nsenter --target "${node[$1]}" --net --uts "${@:2}"; }

on pen-a ip link add pen0 type veth peer name pen0 netns "${node[pen-b]}" 2>"$work/err" ||
    skip "no cable: $(cat "$work/err")"
plug() {
    on "$1" ip address add "$2/24" dev pen0 && on "$1" ip link set pen0 up && on "$1" ip link set lo up
}
{ plug pen-a 10.77.77.1 && plug pen-b 10.77.77.2; } 2>"$work/err" || skip "no addresses: $(cat "$work/err")"

# What mpirun uses in place of ssh.
cat >"$work/agent" <<AGENT
#!/bin/sh
host=\$1
shift
exec nsenter --target "\$(cat "$work/\$host.pid")" --net --uts sh -c "\$*"
AGENT
chmod +x "$work/agent"

# ---- Jobs -----------------------------------------------------------------------------------------------------------

# job RANKS-A RANKS-B COMMAND…: mpirun on pen-a. Its exit code; what it says is in out and err.
job() {
    on pen-a timeout -k 5 60 mpirun --oversubscribe --bind-to none --host "pen-a:$1,pen-b:$2" -np $(($1 + $2)) \
        --mca plm_rsh_agent "$work/agent" "${@:3}" >"$work/out" 2>"$work/err"
}

fail() {
    echo "FAIL: $*"
    tail -n 20 "$work/err" | sed 's/^/    /'
    failures=$((failures + 1))
}

# until_there COUNT COMMAND…: waits until the command prints so many lines.
until_there() {
    local i
    for ((i = 0; i < 200; i++)); do
        [ "$("${@:2}" | wc -l)" -ge "$1" ] && return
        sleep 0.1
    done
    fail "not there: ${*:2}"
}

# processes HOST PROGRAM
processes() {
    local folder network
    network=$(readlink "/proc/${node[$1]}/ns/net")
    for folder in /proc/[0-9]*; do
        [ "$(readlink "$folder/ns/net") $(readlink "$folder/exe")" = "$network $2" ] && echo "${folder#/proc/}"
    done 2>/dev/null
}

ids() { grep -o '"output_ids": *\[[^]]*\]' "$1"; }
"$penstock" plan "$model" --stages 2 --json >"$work/profile" 2>"$work/err" || fail "plan: exit code $?"
run=("$penstock" run "$model" --profile "$work/profile" --ignore-eos)
question=(-p "The capital of France is" -n 24 --json)

"${run[@]}" "${question[@]}" >"$work/alone" 2>"$work/err" || fail "one process: exit code $?"
[ -n "$(ids "$work/alone")" ] || fail "one process: no tokens"
# same WHAT RANKS-A RANKS-B
same() {
    local began=${EPOCHREALTIME/[.,]/}
    job "$2" "$3" "${run[@]}" "${question[@]}" || fail "$1: exit code $?"
    [ "$(ids "$work/out")" = "$(ids "$work/alone")" ] || fail "$1: other tokens"
    echo "$1: the same tokens, $(((${EPOCHREALTIME/[.,]/} - began) / 1000)) ms"
}
same "a stage on each node" 1 1
same "two stages on each node" 2 2
if on pen-a tc qdisc add dev pen0 root netem delay 5ms 2>"$work/err"; then
    same "5 ms away" 1 1
    on pen-a tc qdisc del dev pen0 root
else
    echo "5 ms away: not tried, $(head -n 1 "$work/err")"
fi

# A stage of the other node stops: it is named with its host.
: >"$work/err"
job 1 1 "${run[@]}" -p x -n 4000 --step-timeout 2 &
until_there 1 grep 'measured:' "$work/err"
stopped=$(processes pen-b "$penstock")
kill -STOP "$stopped"
wait $!
code=$?
[ $code -eq 7 ] || fail "a stopped stage: exit code $code, not 7"
grep -q '^penstock: .*rank 1 (stage 1.*on pen-b).*' "$work/err" || fail "a stopped stage: not named"
[ -z "$(processes pen-b "$penstock")" ] || fail "a stopped stage: still there"
grep -m 1 '^penstock:' "$work/err"

# A rank of the other node is lost. Its neighbour sees it and drops out, which rank 0 hears of, and all ends well.
job 2 2 --enable-recovery "$survive" drop 2
code=$?
[ $code -eq 0 ] || fail "a lost rank: exit code $code, not 0"
[ "$(grep -c '^line' "$work/out")" -eq 20000 ] || fail "a lost rank: not all output has come"
grep -q 'rank 3 sees the end of rank 2' "$work/err" || fail "a lost rank: its neighbour has not seen it"
grep -q 'rank 0 sees the end of rank 3' "$work/err" || fail "a lost rank: rank 0 has not heard of its neighbour"
[ -z "$(processes pen-b "$survive")" ] || fail "a lost rank: ranks are left"
echo "a lost rank: code $code"

: >"$work/err"
job 1 2 "$survive" drain &
drained=$!
until_there 3 grep 'is up' "$work/err"
read -r limit <"/proc/$drained/task/$drained/children"
read -r mpirun <"/proc/${limit% }/task/${limit% }/children"
kill -USR1 "$mpirun"
wait $drained
code=$?
[ $code -eq 8 ] || fail "USR1: exit code $code, not 8"
[ "$(grep -c drains "$work/err")" -eq 3 ] || fail "USR1: not all ranks heard of it"
echo "USR1: code $code"
exit $((failures > 0))
