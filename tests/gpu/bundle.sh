#!/usr/bin/env bash
# What run.sh needs on a machine that has a GPU and little else: bundle.sh BUILD PARTS [MODEL.gguf…]
#
# Gathers the programs of a build (targets penstock and gpu_tests), mpirun, and the shared libraries and components of
# all of these, but for the C library, and packs them into files of PARTS of at most 28 MiB each; models are cut likewise.
# Programs find what came with them by their environment alone, which a script of each one's name sets; nothing in them
# is changed. The other machine needs a C library that is not older, bash and, for most parts of run.sh, python3.
#
#   bundle.sh --unpack PARTS FOLDER   on the other machine, makes the folder for run.sh --built; parts that are not there
#                                     are told, and what is there is unpacked
set -euo pipefail
PART_BYTES=$((28 * 1024 * 1024))
fail() { echo "bundle.sh: $*" >&2; exit 1; }

# unpack PARTS FOLDER. A file's parts count only when all are there, which their sum shows.
unpack() {
  local parts=$1 folder=$2 name missing=0
  [ -e "$parts/sums" ] || fail "$parts has no sums: is it what bundle.sh made?"
  mkdir -p "$folder/models"
  while read -r sum name; do
    if ! cat "$parts/$name".part* 2>/dev/null >"$folder/whole" ||
      [ "$(sha256sum <"$folder/whole" | cut -d' ' -f1)" != "$sum" ]; then
      echo "bundle.sh: $name is not whole yet" >&2
      missing=1
    elif [ "$name" = programs.tar.gz ]; then
      tar -xzf "$folder/whole" -C "$folder"
    else
      mv -f "$folder/whole" "$folder/models/$name"
    fi
  done <"$parts/sums"
  rm -f "$folder/whole"
  return "$missing"
}
if [ "${1:-}" = --unpack ]; then
  [ $# = 3 ] || fail "usage: bundle.sh --unpack PARTS FOLDER"
  unpack "$2" "$3" && exit
  exit 3
fi

[ $# -ge 2 ] || fail "usage: bundle.sh BUILD PARTS [MODEL.gguf…]"
build=$1 parts=$2
shift 2
[ -x "$build/penstock" ] || fail "$build has no program penstock; build the targets penstock and gpu_tests first"
mkdir -p "$parts"
[ -z "$(ls -A "$parts")" ] || fail "$parts is not empty"
for model in "$@"; do [ -r "$model" ] || fail "there is no model $model"; done
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/bin" "$folder/lib" "$folder/programs"

# ---- Programs --------------------------------------------------------------------------------------------------------

cp "$build/penstock" "$folder/programs/"
for program in "$build"/tests/gpu/gpu_* "$build/tests/gpu/bench_cuda"; do
  [ ! -x "$program" ] || cp "$program" "$folder/programs/"
done
[ -e "$folder/programs/gpu_linear" ] || echo "bundle.sh: $build has no gpu_tests: for --device cpu only" >&2
for program in mpirun orted; do
  path=$(command -v "$program") || fail "there is no $program"
  cp -L "$path" "$folder/programs/"
done

# Open MPI's components and texts stand where they stood, seen from its prefix; OPAL_PREFIX says that it has moved.
ompi_path() { ompi_info --path all --parsable | sed -n "s/^path:$1://p" | head -n 1; }
prefix=$(ompi_path prefix)
components=$(ompi_path pkglibdir) texts=$(ompi_path pkgdatadir)
for path in "$components" "$texts"; do
  [ -d "$path" ] || fail "Open MPI's folder '$path' is not there"
  [[ $path = "$prefix"/* ]] || fail "Open MPI's folder $path is not under its prefix $prefix and cannot be moved"
  mkdir -p "$folder/ompi${path#"$prefix"}"
done
cp "$texts"/*.txt "$folder/ompi${texts#"$prefix"}/"
# Those for networks and job managers that a single machine lacks would pull in their libraries.
foreign='lib(ucp|uct|ucs|fabric|ibverbs|psm2|psm_infinipath|oshmem|nl-3|mca_common_monitoring)\.'
for component in "$components"/*.so; do
  needed=$(ldd "$component")
  grep -Eq "$foreign" <<<"$needed" || cp "$component" "$folder/ompi${components#"$prefix"}/"
done
mkdir "$folder/ompi/bin"
cp "$folder/programs/orted" "$folder/ompi/bin/"

# PMIx, which Open MPI is made with, has components of its own beside its library; PMIX_LIBDIR says where.
pmix=$(ldd "$components/mca_pmix_ext3x.so" 2>/dev/null | awk '$1 ~ /^libpmix/ { print $3 }' | head -n 1)
if [ -n "$pmix" ]; then
  pmix=$(dirname "$(dirname "$(realpath "$pmix")")")
  for path in lib/pmix share/pmix; do
    [ ! -d "$pmix/$path" ] || { mkdir -p "$folder/pmix/${path%/*}" && cp -r "$pmix/$path" "$folder/pmix/$path"; }
  done
fi

# ---- Libraries -------------------------------------------------------------------------------------------------------

# The C library and its loader belong to the machine; everything else that something here is linked to comes along.
mapfile -t files < <(find "$folder" -type f \( -path '*/programs/*' -o -name '*.so' \))
missing=$(ldd "${files[@]}" 2>/dev/null | awk '/not found/ { print $1 }' | sort -u)
[ -z "$missing" ] || fail "this machine itself lacks $missing"
ldd "${files[@]}" 2>/dev/null | awk '$2 == "=>" { print $3 }' | sort -u |
  grep -Ev '/(ld-linux[^/]*|lib(c|m|pthread|dl|rt|resolv|util|anl))\.so[^/]*$' |
  while read -r library; do cp -L "$library" "$folder/lib/"; done

# A script of each program's name. Only the program sees these libraries; what it is started from does not.
cat >"$folder/start" <<'END'
#!/bin/sh
# Starts the program of this name with the libraries that came with it; see tests/gpu/bundle.sh.
here=$(cd "$(dirname "$0")/.." && pwd)
export OPAL_PREFIX="$here/ompi" PMIX_LIBDIR="$here/pmix/lib" PMIX_DATADIR="$here/pmix/share"
export LD_LIBRARY_PATH="$here/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
exec "$here/programs/${0##*/}" "$@"
END
chmod +x "$folder/start"
for program in "$folder"/programs/*; do cp "$folder/start" "$folder/bin/${program##*/}"; done
rm "$folder/start"

# ---- Parts -----------------------------------------------------------------------------------------------------------

# pack NAME: standard input as parts, and its sum.
pack() {
  split --bytes="$PART_BYTES" --numeric-suffixes=1 - "$parts/$1.part"
  printf '%s %s\n' "$(cat "$parts/$1".part* | sha256sum | cut -d' ' -f1)" "$1" >>"$parts/sums"
}
tar -C "$folder" -czf - . | pack programs.tar.gz
for model in "$@"; do pack "${model##*/}" <"$model"; done
du -h "$parts"/*
