#!/usr/bin/env bash
# A real model through mpirun, from a bare Debian 12 with nothing but git: demo.sh [PROMPT]
#
# Installs what is missing, builds, gets SmolLM2 and runs it as a pipeline of two stages.
set -euo pipefail
cd "$(dirname "$0")/.."

launch/setup.sh
model=$(launch/fetch-model.sh)

log=$(mktemp)
trap 'rm -f "$log"' EXIT
echo "demo: building" >&2
{ cmake --preset release && cmake --build --preset release --target penstock; } >"$log" 2>&1 || { cat "$log" >&2; exit 1; }

# Open MPI wants to be told twice that root means it, as in a container.
if [ "$(id -u)" = 0 ]; then export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1; fi
prompt=${1:-The capital of France is}
printf '\n$ mpirun --oversubscribe -np 2 build/penstock run %s -p "%s" -n 48\n' "$model" "$prompt" >&2
mpirun --oversubscribe -np 2 build/penstock run "$model" -p "$prompt" -n 48
