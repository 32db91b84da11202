#!/usr/bin/env bash
# Under Slurm: a cluster of this one machine, with daemons of its own that end with the test.
#
#   slurm.sh PENSTOCK SURVIVE EXAMPLES       77: slurmctld, slurmd, slurm-client or munge is not there
set -u
penstock=$(realpath "$1") survive=$2 examples=$3
model=synthetic:llama:layers=8,hidden=256,ffn=512,heads=4,kv_heads=2,vocab=4096,type=q4_0
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
failures=0

PATH=$PATH:/usr/sbin
for program in munged slurmctld slurmd srun; do
    command -v $program >/dev/null || { echo "SKIP: no $program here"; exit 77; }
done

# ---- The cluster ----------------------------------------------------------------------------------------------------
work=$(mktemp -d)
export SLURM_CONF=$work/slurm.conf
leave() {
    local i pid
    for ((i = 0; i < 100; i++)); do # their keepers would wait for a daemon that does not come back
        [ -n "$(squeue --noheader 2>/dev/null)" ] || break
        [ "$i" = 50 ] && scancel --user="$(id -un)"
        sleep 0.1
    done
    for pid in "$work"/*.pid "$work/munge/pid"; do [ -e "$pid" ] && kill "$(cat "$pid")"; done
    sleep 0.5
    rm -rf "$work"
}
trap leave EXIT
chmod 755 "$work"
mkdir "$work/state" "$work/spool" "$work/munge"
head -c 128 /dev/urandom >"$work/munge/key"
chmod 600 "$work/munge/key"
host=$(hostname -s) port=$((20000 + $$ % 10000 * 2))
cat >"$SLURM_CONF" <<CONF
ClusterName=penstock
SlurmctldHost=$host(127.0.0.1)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$work/munge/socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
SlurmdParameters=config_overrides
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SwitchType=switch/none
SchedulerType=sched/builtin
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
NodeName=$host NodeAddr=127.0.0.1 CPUs=64
PartitionName=all Nodes=ALL Default=YES State=UP
CONF
echo "PMIxCliTmpDirBase=$work/pmix" >"$work/mpi.conf" # in /tmp the steps of an earlier test would be in the way
mkdir -m 777 "$work/pmix"
echo "CgroupPlugin=cgroup/v1" >"$work/cgroup.conf" # of which nothing is used: no need to find any
munged --force --num-threads=1 --key-file="$work/munge/key" --socket="$work/munge/socket" --pid-file="$work/munge/pid" \
    --log-file="$work/munge/log" --seed-file="$work/munge/seed" && slurmctld && slurmd
for ((i = 0; i < 100; i++)); do
    [ "$(sinfo --noheader --format=%T 2>"$work/err")" = idle ] && break
    sleep 0.1
done
if [ $i = 100 ]; then
    echo "SKIP: Slurm does not start here"
    tail -n 5 "$work/err" "$work/munge/log" "$work"/*.log
    exit 77
fi

# ---- Its jobs -------------------------------------------------------------------------------------------------------
fail() {
    echo "FAIL: $*"
    tail -n 20 "$work/err" | sed 's/^/    /'
    failures=$((failures + 1))
}

# until_there WHAT PATTERN FILE: waits for a line.
until_there() {
    local i
    for ((i = 0; i < 150; i++)); do
        grep -qs "$2" "$3" && return
        sleep 0.1
    done
    fail "$1: no '$2'"
}

ids() { grep -o '"output_ids": *\[[^]]*\]' "$1"; }
run=("$penstock" run "$model" -p hi -n 16 --json)
"${run[@]}" >"$work/alone" 2>"$work/err" || fail "one process: exit code $?"
srun --mpi=pmix -n 2 "${run[@]}" >"$work/out" 2>"$work/err" || fail "two tasks: exit code $?"
[ -n "$(ids "$work/out")" ] || fail "two tasks: no tokens"
[ "$(ids "$work/out")" = "$(ids "$work/alone")" ] || fail "two tasks: other tokens"
grep -q '^2 stages by ' "$work/err" || fail "two tasks: not two stages"

srun --mpi=none -n 2 "${run[@]}" >"$work/out" 2>"$work/err"
code=$?
[ $code -eq 2 ] || fail "no PMI: exit code $code, not 2"
[ "$(grep -c '^penstock:' "$work/err")" -eq 1 ] || fail "no PMI: not one line"
grep '^penstock:' "$work/err"

# A task that is lost ends the step where --kill-on-bad-exit says so, as in the example.
srun --mpi=pmix --kill-on-bad-exit=1 -n 3 "$survive" finish 2 >"$work/out" 2>"$work/err"
code=$?
[ $code -ne 0 ] || fail "a lost task: exit code 0"
[ "$(grep -c ^line "$work/out")" -eq 0 ] || fail "a lost task: the others went on"
echo "a lost task: code $code"

# The example: told to stop it ends with 8 and is queued again, and then all is answered.
mkdir "$work/bin"
ln -s "$penstock" "$work/bin/penstock"
for ((i = 0; i < 120; i++)); do
    printf '{"custom_id": "%d", "method": "POST", "url": "/v1/completions", ' $i
    printf '"body": {"prompt": "x", "max_tokens": 120, "ignore_eos": true}}\n'
done >"$work/in.jsonl"
PATH=$work/bin:$PATH PENSTOCK_MAX_NUM_SEQS=4 \
    sbatch --nodes=1 --ntasks-per-node=2 --cpus-per-task=1 --time=10 --output="$work/log" --parsable \
    "$examples/batch.sbatch" "$model" "$work/in.jsonl" "$work/out.jsonl" >"$work/job" 2>"$work/err" ||
    fail "sbatch: exit code $?"
until_there sbatch custom_id "$work/out.jsonl"
scancel --signal=USR1 --batch "$(cat "$work/job")"
until_there sbatch '^penstock: told to stop: .* of 120 answers' "$work/log"
for ((i = 0; i < 100; i++)); do # Slurm would wait two minutes
    [ "$(squeue --noheader --format=%T)" = PENDING ] && break
    sleep 0.1
done
scontrol update JobId="$(cat "$work/job")" StartTime=now 2>"$work/err" || fail "sbatch: it is not queued again"
until_there sbatch 'requests are there, going on' "$work/log"
until_there sbatch 'requests, 0 failed' "$work/log"
[ "$(grep -c custom_id "$work/out.jsonl")" -eq 120 ] || fail "sbatch: not 120 answers"
[ ! -e "$work/out.jsonl.journal" ] || fail "sbatch: the journal is still there"
[ $failures = 0 ] || tail -n 30 "$work/log" "$work/slurmd.log" "$work/slurmctld.log"
echo "sbatch: $(grep -o 'told to stop.*' "$work/log"), which it did"
exit $((failures > 0))
