#!/bin/bash
# A rank of the program is killed, or stopped, while the others need it: the job ends soon with 75, says which rank it was,
# and leaves nothing running.
#     test_lost_rank.sh PROGRAM SOURCES
set -euo pipefail
program=$1 sources=$2
work=$(mktemp -d)
failed=0 marker=

# Processes of the case that were started with "NAME=VALUE" in their environment.
find_processes()
{
    local file
    for file in /proc/[0-9]*/environ; do
        if grep -qzxF -- "$marker" "$file" 2>/dev/null && grep -qzxF -- "$1" "$file" 2>/dev/null; then
            file=${file#/proc/}
            echo "${file%/environ}"
        fi
    done
}

clean_up()
{
    local pid
    for pid in $(find_processes "$marker"); do
        kill -KILL "$pid" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap clean_up EXIT

complain()
{
    echo "FAIL $1"
    sed -n '1,30s/^/  err: /p' "$work/err"
    failed=1
}

# lost NAME SIGNAL READY TEXT ARGUMENTS..: when the command READY succeeds, rank 1 gets the signal; TEXT names it.
lost()
{
    local name=$1 signal=$2 ready=$3 text=$4 start=$SECONDS code=0 job pid
    shift 4
    marker=LOST_RANK_TEST=$$-$name
    : >"$work/out"
    env "$marker" "$work/launch/longhaul-mpirun" -n 3 generate --backend cpu --threads 1 --log info "$@" \
        >"$work/out" 2>"$work/err" </dev/null &
    job=$!
    until $ready || [ $((SECONDS - start)) -ge 30 ]; do
        sleep 0.05
    done
    pid=$(find_processes OMPI_COMM_WORLD_RANK=1)
    if [ -z "$pid" ]; then
        complain "$name: no rank 1 after $((SECONDS - start)) s"
        exit 1
    fi
    start=$SECONDS
    kill "-$signal" "$pid"
    wait "$job" || code=$?
    [ "$code" -eq 75 ] || complain "$name: code $code, expected 75"
    [ $((SECONDS - start)) -le 15 ] || complain "$name: ended after $((SECONDS - start)) s, expected 15"
    grep -qE "$text" "$work/err" || complain "$name: no line with '$text'"
    sleep 0.2 # the launcher's last child may still be ending
    [ -z "$(find_processes "$marker")" ] || complain "$name: processes are left"
    echo "$name: rank 1 ($pid) lost, the end after $((SECONDS - start)) s"
}

prefills()
{
    [ "$(grep -c ' engine: ' "$work/err")" -ge 3 ] && sleep 0.3
}

decodes()
{
    [ -s "$work/out" ]
}

# The launcher takes the newest program of the tree that it is in.
mkdir -p "$work/launch" "$work/build/test"
cp "$sources/launch/longhaul-mpirun" "$work/launch"
ln -s "$program" "$work/build/test/longhaul"
for ((i = 0; i < 1000; i++)); do
    echo 'The keys hang beside the door, and the list of rooms is in the drawer below.'
done >"$work/long"

lost kill-in-prefill KILL prefills 'rank 1 .*signal 9' --prompt-file "$work/long" --max-tokens 1
lost kill-in-decode KILL decodes 'rank 1 .*signal 9' --prompt 'a a a' --max-tokens 100k
lost stop-in-prefill STOP prefills '^longhaul: rank [02]: .*rank 1' --prompt-file "$work/long" --max-tokens 1 --peer-timeout 3
exit $failed
