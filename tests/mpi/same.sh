#!/usr/bin/env bash
# The same tokens and log-probabilities, bit for bit, whatever the number of stages, threads and rows of a chunk, and
# whichever way the messages travel.
#
#   same.sh ENGINE_RUN [ARGUMENT...]
set -u
program=$1
shift
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
expected=$("$program" "$@") || exit 1
echo "$expected"
choices=1
[[ " $* " =~ " --choices "([0-9]+)" " ]] && choices=${BASH_REMATCH[1]}
[ "$(grep -c 'finish [12], [1-9][0-9]* tokens' <<<"$expected")" = $((3 * choices)) ] ||
    { echo "FAIL: not 3 requests"; exit 1; }
failures=0

# The second request has no penalties: those of its neighbours do not concern it.
case " $* " in *" --penalties "*)
    plain=$("$program" ${@/--penalties/}) || exit 1
    equal=$(comm -12 <(sort <<<"$plain") <(sort <<<"$expected") | grep -o '^request [0-9]*' | sort -u | tr '\n' ,)
    [ "$equal" = "request 1," ] || { echo "FAIL: equal without penalties: $equal"; exit 1; } ;;
esac

# A choice is what a request for it alone says, and each says something else.
if [ "$choices" -gt 1 ]; then
    apart=$("$program" "$@" --apart) || exit 1
    [ "$apart" = "$expected" ] || { echo "FAIL: apart:"; echo "$apart"; exit 1; }
    different=$(grep -o 'hash [0-9a-f]*' <<<"$expected" | sort -u | wc -l)
    [ "$different" = $((3 * choices)) ] || { echo "FAIL: $different different choices"; exit 1; }
fi

# same MPIRUN_ARGUMENT... -- ARGUMENT...
same() {
    local launcher=()
    while [ "$1" != -- ]; do launcher+=("$1"); shift; done
    shift
    local got
    # Open MPI leaks at its end; our own leaks show in the run without it.
    if got=$(ASAN_OPTIONS=detect_leaks=0 mpirun --oversubscribe "${launcher[@]}" "$program" "${common[@]}" "$@") &&
        [ "$got" = "$expected" ]; then
        echo "same: ${launcher[*]} $*"
    else
        echo "FAIL: ${launcher[*]} $*"
        echo "$got"
        failures=$((failures + 1))
    fi
}

common=("$@")
same -np 1 --
same -np 1 -- --rows 7
same -np 2 --
same -np 2 -- --threads 2 --rows 33 --overhead 1
same -np 3 -- --rows 16
same -np 4 -- --threads 1 --overhead 100
same -np 4 -- --rows 5
same -np 3 --mca btl tcp,self --
same -np 3 --mca btl_vader_single_copy_mechanism none -- --rows 200
exit $((failures > 0))
