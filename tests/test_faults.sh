#!/bin/sh
# Runs the program of faults (first argument) by the launcher's command line (the rest), on 3 ranks.
program=$1
shift
failures=0

# expect CODE PASSED ARGS...: so many ranks finish their checks, and mpiexec returns the code.
expect()
{
    code=$1
    ranks=$2
    shift 2
    output=$($launch -n 3 "$program" "$@" 2>&1)
    got=$?
    passed=$(echo "$output" | grep -c "1 tests, .* checks, 0 failed")
    if [ "$passed" = "$ranks" ] && [ "$got" = "$code" ]; then
        echo "ok   $*"
    else
        echo "FAIL $*: $passed of $ranks ranks passed, exit code $got, expected $code"
        echo "$output"
        failures=$((failures + 1))
    fi
}

launch=$*
for rank in 0 2; do
    expect 42 3 hang $rank
done
for fault in less more much-more piece step; do
    expect 42 3 $fault
done
expect 0 3 slow
expect 75 0 abort
expect 75 0 first
exit $((failures > 0))
