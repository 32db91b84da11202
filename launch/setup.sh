#!/usr/bin/env bash
# Installs what the build needs and this machine lacks, by its Debian name: setup.sh [--tests]
#
# As root, or through sudo. Only what is missing is installed, and nothing is said where nothing is. With --tests also
# what only the tests need. On a system without apt it names the packages and leaves them to you.
set -euo pipefail

packages=(gcc libc6-dev cmake ninja-build pkg-config git ca-certificates python3 python3-venv openmpi-bin libopenmpi-dev
          libjansson-dev libpcre2-dev libutf8proc-dev libhwloc-dev libxxhash-dev libssl-dev libcmocka-dev)
[ "${1:-}" = --tests ] && packages+=(g++ clang-format-14 clang-14 libclang-rt-14-dev iproute2 slurmctld slurmd slurm-client
                                     munge)

say() { printf 'setup: %s\n' "$*" >&2; }

if ! command -v apt-get >/dev/null; then
  say "this is no Debian: see to it that it has what Debian calls ${packages[*]}"
  exit 0
fi

missing=()
for package in "${packages[@]}"; do
  [ "$(dpkg-query -W -f='${Status}' "$package" 2>/dev/null)" = "install ok installed" ] || missing+=("$package")
done
[ ${#missing[@]} -gt 0 ] || exit 0

root=()
if [ "$(id -u)" != 0 ]; then
  if ! command -v sudo >/dev/null; then
    say "packages are missing; as root, run: apt-get install --no-install-recommends ${missing[*]}"
    exit 1
  fi
  root=(sudo)
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
say "installing ${missing[*]}"
install=(env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}")
# The lists may be absent or stale: they are fetched when the first try shows it.
if ! "${root[@]}" "${install[@]}" >"$log" 2>&1; then
  if ! { "${root[@]}" apt-get update -qq && "${root[@]}" "${install[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    say "apt-get could not install them; is this machine offline?"
    exit 1
  fi
fi
