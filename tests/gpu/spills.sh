#!/usr/bin/env bash
# Shows what ptxas says of every kernel of the CUDA device, and fails where one spills registers: spills.sh [ARCHITECTURE]
#
# It needs nvcc and no GPU. The kernels have to be found: a number that is too small means that nothing was looked at.
set -euo pipefail
cd "$(dirname "$0")/../.."
architecture=${1:-90}
nvcc=${NVCC:-$(command -v nvcc || echo /usr/local/cuda/bin/nvcc)}
[ -x "$nvcc" ] || { echo "spills.sh: skipped: there is no nvcc"; exit 77; }
launcher=$(command -v ccache || true)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# What ccache has compiled before it tells again.
for file in kernels/cuda/*.cu; do
  ${launcher:+"$launcher"} "$nvcc" -std=c++17 -arch="sm_$architecture" -fmad=false -Werror=all-warnings -Xcompiler=-Wall,-Wextra -Xptxas=-v \
    -Ikernels -Iruntime/base -c "$file" -o "$folder/object" 2>&1 | c++filt >>"$folder/log" ||
    { cat "$folder/log"; exit 1; }
done

# Three lines for each kernel: "Compiling entry function 'NAME'", "… bytes spill stores …", "Used N registers …".
awk '/Compiling entry function/ { name = $0; sub(/.*function ./, "", name); sub(/. for .sm.*/, "", name) }
     /bytes spill stores/ { spilled = $5 + $9 }
     /Used [0-9]+ registers/ {
       match($0, /Used [0-9]+/); kernels++
       printf "%4d registers %5d bytes spilled  %s\n", substr($0, RSTART + 5, RLENGTH - 5), spilled, name
       if (spilled > 0) bad++
     }
     END { printf "%d kernels, %d spill\n", kernels, bad; exit bad > 0 || kernels < 90 }' "$folder/log"
