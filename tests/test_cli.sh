#!/bin/bash
# The program from outside: results, exit codes and error lines, alone and on 3 ranks.
#     test_cli.sh PROGRAM MPIEXEC SOURCES
set -euo pipefail
program=$1 mpiexec=$2 sources=$3
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tests=0 failed=0 counts='1 3'

# shellcheck disable=SC2054 # a comma of mpiexec's own
mpi=("$mpiexec" --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 --mca btl self,vader -n 3)

complain()
{
    echo "FAIL $1"
    sed -n '1,20s/^/  err: /p' "$work/err"
    sed -n '1,5s/^/  out: /p' "$work/out"
    failed=$((failed + 1))
}

# launch RANKS ARGUMENTS..: fills $work/out, $work/err and `code`.
launch()
{
    local ranks=$1
    shift
    code=0
    if [ "$ranks" -eq 1 ]; then
        timeout 100 "$program" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    else
        timeout 100 "${mpi[@]}" "$program" "$@" >"$work/out" 2>"$work/err" </dev/null || code=$?
    fi
}

# fails CODE TEXT ARGUMENTS..: on every number of ranks in `counts` this code, one line of ours that holds TEXT, and
# nothing on standard output.
fails()
{
    local want=$1 text=$2 ranks lines
    shift 2
    for ranks in $counts; do
        tests=$((tests + 1))
        launch "$ranks" "$@"
        lines=$(grep -c '^longhaul: ' "$work/err" || true)
        if [ "$code" -ne "$want" ] || [ "$lines" -ne 1 ] || [ -s "$work/out" ] ||
            [[ $(grep '^longhaul: ' "$work/err") != *"$text"* ]]; then
            complain "$ranks ranks: $*: code $code, $lines lines; expected code $want and '$text'"
        fi
    done
}

# ends CODE TEXT RANKS ARGUMENTS..: this code, and TEXT in the output.
ends()
{
    local want=$1 text=$2
    shift 2
    tests=$((tests + 1))
    launch "$@"
    if [ "$code" -ne "$want" ] || ! grep -qF -- "$text" "$work/out"; then
        complain "$*: code $code; expected $want and '$text'"
    fi
}

gives()
{
    ends 0 "$@"
}

# same WHAT: $work/out is what it was at the last call for WHAT.
same()
{
    tests=$((tests + 1))
    if [ -f "$work/same.$1" ]; then
        cmp -s "$work/out" "$work/same.$1" || complain "$1 differs"
    else
        cp "$work/out" "$work/same.$1"
    fi
}

usage()
{
    fails 64 'unknown command' genrate
    fails 64 'nearest is --prompt' generate --promt x
    fails 64 'multiple of 64' generate --prompt x --segment 100
    counts=1 # the others end in the same two ways
    fails 64 "expected a size" generate --max-tokens 12q --prompt x
    fails 64 'expected a whole number from 1 to 4096' generate --threads 0 --prompt x
    fails 64 'one of auto|cpu|cuda' generate --backend gpu --prompt x
    fails 64 'at most one' generate --prompt x --prompt-file y
    fails 64 'expected both' generate --prompt x --system y
    fails 64 'expected a file' generate --prompts x --json -
    fails 64 'log level' generate --log loud
    export LH_PROMTP=x
    fails 64 'nearest is LH_PROMPT' generate
    unset LH_PROMTP
    counts='1 3'
}

bad_input()
{
    printf 'a\xffb' >"$work/latin"
    : >"$work/empty"
    seq -f 'number %g' 100 >"$work/long"
    echo '[1, 2, 1000000]' >"$work/ids"
    echo '{"prompt": "x", "temperatur": 1}' >"$work/batch"
    mkdir "$work/model"
    echo '{' >"$work/model/config.json"
    mkdir "$work/fifo"
    cp "$sources/models/needle/"*.json "$work/fifo"
    mkfifo "$work/fifo/tiktoken.model"

    fails 66 'cannot be opened' generate --prompt-file "$work/none"
    fails 66 'cannot be written' generate --prompt x --json "$work/none/x"
    fails 66 'no such directory' generate --prompt x --model "$work/none"
    fails 65 'UTF-8' generate --prompt-file "$work/latin"
    fails 65 'empty' generate --prompt-file "$work/empty"
    fails 65 'empty' generate --prompt ''
    fails 65 "at most the context's 64" generate --prompt-file "$work/long" --context 64
    fails 65 'line 1' generate --prompts "$work/batch"
    fails 65 'item 2' logits --tokens "$work/ids"
    fails 65 'JSON array' logits --tokens "$work/long"
    fails 65 'config.json' generate --prompt x --model "$work/model"
    fails 65 'tiktoken.model: not a regular file' generate --prompt x --model "$work/fifo"
}

results()
{
    local ranks
    cat >"$work/question" <<'TEXT'
The keys hang beside the door, and the list of rooms is in the drawer below.

The secret number of Walnut is 407215.

What is the secret number of Walnut?
TEXT
    printf '%s\n' '{"prompt": "one two", "max_tokens": 4, "temperature": 1, "seed": 7, "logprobs": 2}' \
        '{"messages": [{"role": "user", "content": "three"}], "max_tokens": 3, "stop": ["x", "y"]}' \
        >"$work/batch"
    echo '[1, 2, 3, 4, 5, 6, 7, 8]' >"$work/ids"
    for ranks in 1 3; do
        gives 407215 $ranks generate --chat --prompt-file "$work/question" --quiet
        same answer
        gives '"prompt_tokens":' $ranks generate --prompts "$work/batch" --quiet
        same batch
        gives 'position 7' $ranks logits --tokens "$work/ids" --last 2 --greedy 3 --quiet \
            --out "$work/logits.safetensors"
        cp "$work/logits.safetensors" "$work/out"
        same logits
        gives '100%' $ranks needle --lengths 300 --depths 50 --quiet --svg "$work/map.svg"
    done
    gives '"finish_reason": "stop"' 1 generate --chat --prompt-file "$work/question" --quiet \
        --stop 72 --json -
    gives 'Walnut is 40"' 1 generate --chat --prompt-file "$work/question" --quiet --stop 72 --json -
    gives '"digest": "' 1 generate --prompt x --max-tokens 1 --quiet --json -
    gives '"found": true' 1 needle --lengths 300 --depths 0 --quiet --chat --json -
    gives '"text":' 1 generate --prompts "$work/batch" --quiet --batch 1
    same batch
}

random_weights()
{
    local config=$sources/tests/golden/beta/config.json ranks
    gives '1,324,378 parameters' 1 synth --config "$config" --out "$work/synth" --shards 2 --seed 5
    fails 64 'nothing is overwritten' synth --config "$config" --out "$work/synth"
    fails 64 '--config' synth --out "$work/other"
    fails 66 'cannot be written' synth --config "$config" --out "$work/none/x"
    gives 'position 7' 3 logits --model "$work/synth" --tokens "$work/ids" --quiet
    same random
    for ranks in 1 3; do
        gives 'position 7' $ranks logits --model "$sources/tests/golden/beta" --weights synthetic \
            --seed 5 --tokens "$work/ids" --quiet
        same random
        gives 'VALID' $ranks bench --model "$sources/tests/golden/beta" --weights synthetic --quiet \
            --prefill 2,300 --decode 130 --batch 2 --repeat 2 --segment 64 --csv "$work/bench.csv"
        gives 'caches filled' $ranks bench --model "$sources/tests/golden/beta" --weights synthetic --quiet \
            --fill synthetic --prefill 100 --decode 5000 --batch 2 --repeat 2 --csv "$work/bench.csv"
        tests=$((tests + 1))
        grep -q '^prefill,100,.*,computed$' "$work/bench.csv" && grep -q '^decode,5000,.*,filled$' "$work/bench.csv" ||
            complain 'bench --fill synthetic: the CSV does not say what was filled'
        gives 'perplexity' $ranks score --file "$work/question" --quiet
        same score
    done
    fails 64 'at most one' score --file x --tokens y
    fails 65 'expected 2' score --file "$work/empty"
    gives '"perplexity"' 1 score --tokens "$work/ids" --json - --quiet
}

# check WHAT COMMAND..: the command's last words are true.
check()
{
    local what=$1
    shift
    tests=$((tests + 1))
    "$@" || complain "$what"
}

scaling()
{
    local beta=$sources/tests/golden/beta
    local small=(--model "$beta" --weights synthetic --segment 64 --threads 1 --repeat 2)

    gives 'VALID: the logits of every row' 3 scale "${small[@]}" --lengths 70,200 --counts 3,1,2 --quiet \
        --csv "$work/scale.csv" --svg "$work/scale.svg" --json "$work/scale.json"
    check 'scale: the same bits' grep -q 'ran it (the same bits)$' "$work/out"
    check 'scale --csv: rows' [ "$(grep -cE '^(strong|weak|decode),[0-9]+,[123],1,cpu,' "$work/scale.csv")" -eq 18 ]
    check 'scale --csv: columns' [ "$(awk -F, 'NF != 17' "$work/scale.csv" | wc -l)" -eq 0 ]
    check 'scale --csv: the smallest count' [ "$(grep -cE ',1,1,cpu,.*,1\.0000,1\.0000,' "$work/scale.csv")" -eq 6 ]
    check 'scale --csv: weak' grep -q '^weak,600,3,' "$work/scale.csv"
    check 'scale --json' [ "$(grep -cE '"(strong|weak|decode|valid|efficiency|imbalance)":' "$work/scale.json")" -eq 40 ]
    check 'scale --json: phases' [ "$(grep -c '"name": "attention"' "$work/scale.json")" -eq 18 ]
    check 'scale --svg: lines' [ "$(grep -c '<polyline class="data"' "$work/scale.svg")" -eq 4 ]
    check 'scale --svg: title' grep -q 'cpu, 1 thread on each rank, synthetic weights, commit' "$work/scale.svg"
    if command -v xmllint >/dev/null; then
        check 'scale --svg: XML' xmllint --noout "$work/scale.svg"
    fi
    gives 'caches filled, not computed' 3 scale "${small[@]}" --lengths 70 --fill synthetic --quiet --csv "$work/scale.csv"
    check 'scale --fill: marked' [ "$(grep -c '^decode,.*,filled$' "$work/scale.csv")" -eq 3 ]
    gives 'decoding of one sequence' 1 scale "${small[@]}" --lengths 2 --svg "$work/scale.svg"
    fails 64 "expected 1 to the job's" scale --counts 1,4
    fails 64 '--counts: ' scale --counts 0
    fails 64 "at most the context's 100" scale "${small[@]}" --lengths 90 --context 100 --counts 1
    counts=3
    fails 64 '--counts: 2 is there twice' scale --counts 2,1,2
    fails 64 "at most the context's 200" scale "${small[@]}" --lengths 90 --context 200 --repeat 1

    # A fault of the ranks at work ends those that wait, too.
    mkdir "$work/nan"
    cp "$beta/config.json" "$beta/model.safetensors" "$work/nan"
    truncate -s -8192 "$work/nan/model.safetensors"
    fails 65 'model.safetensors' scale --model "$work/nan" --lengths 70 --counts 2
    head -c 8192 /dev/zero | tr '\0' '\377' >>"$work/nan/model.safetensors"
    fails 65 'not finite' scale --model "$work/nan" --lengths 70 --counts 1,3
    fails 65 'not finite' scale --model "$work/nan" --lengths 70 --counts 2
    counts='1 3'
}

others()
{
    "$program" tokenize --file "$work/question" >"$work/ids.json"
    gives 'The secret number of Walnut is 407215.' 1 tokenize --decode --file "$work/ids.json"
    cp "$work/question" "$work/same.decoded"
    same decoded
    local text='"two words\n with a tab\t and \u20ac"'
    printf '%s\n"x"\n' "$text" >"$work/strings"
    "$program" tokenize --lines --file "$work/strings" >"$work/arrays"
    gives '"x"' 1 tokenize --lines --decode --file "$work/arrays"
    gives '€' 1 tokenize --lines --decode --file "$work/arrays"
    gives '223 tensors' 3 inspect
    gives 'every value was read' 1 inspect --verify --quiet
    gives '"fits": null' 1 plan --json - --backend cpu
    ends 71 '"fits": false' 3 plan --json - --backend cpu --memory 1m
    gives '"latent_cache": 8257536' 1 plan --json - --context 1k \
        --model "$sources/tests/golden/kimi-linear-48b"
    gives 'latents' 3 plan --ranks 4 --backend cpu --context 4k
    gives 'nvlink  gpu 0 to 1, 450 GB/s' 1 topo --xml "$sources/tests/topo/gpus.xml"
    gives 'rank 3  gpu 1, node 1, cores 6-7' 3 topo --xml "$sources/tests/topo/gpus.xml" --ranks 4 --svg "$work/topo.svg"
    grep -q '>rank 3, gpu 1</text>' "$work/topo.svg" || complain 'topo --svg'
    gives '"bus": "0000:9a:00.0"' 1 topo --xml "$sources/tests/topo/gpus.xml" --json -
    gives 'rank 2 ' 3 topo
    gives '"bound": "' 3 topo --json - --backend cpu
    fails 66 'nosuch.xml' topo --xml "$work/nosuch.xml"
    fails 65 'not a machine' topo --xml "$sources/tests/check.h"
    gives '"bound": "not bound"' 1 info --json - --backend cpu
    gives '"text"' 3 generate --prompt x --max-tokens 1 --json -
    grep -q '^threads of rank 0: [0-9]*, ' "$work/err" || complain 'no binding in the summary'
    grep -q '^load: 41.7 MiB on all ranks in .* GB/s$' "$work/err" || complain 'no speed of loading in the summary'
    gives '--haystack' 1 needle --help
    gives 'longhaul 0.' 3 --version
}

# What does not fit is refused, and the context that it names then fits.
memory()
{
    local ranks largest
    local narrow=(generate --prompt x --max-tokens 1 --threads 1 --memory 60m)
    local huge=(generate --prompts "$work/many" --batch 4096 --context 1m --backend cpu)
    yes '{"prompt": "x"}' | head -4096 >"$work/many" || true # yes ends by a closed pipe
    for ranks in 1 3; do
        counts=$ranks fails 71 'the plan does not fit: rank 0 needs' "${narrow[@]}" --context 100k
        largest=$(sed -n 's/.*, 62914560 are there (--memory); the largest context that would fit is \([0-9]*\) tokens$/\1/p' "$work/err")
        gives '"text"' "$ranks" "${narrow[@]}" --context "$largest" --quiet --json -
        counts=$ranks fails 71 "is $largest tokens" "${narrow[@]}" --context $((largest + 1))
    done
    fails 71 'no context would fit' generate --prompt x --memory 1m
    counts=1 fails 71 '(free memory)' "${huge[@]}"
    counts=3 fails 71 'rank 0 and 2 others on' "${huge[@]}"
    gives '"largest_context": 512' 1 plan --json - --backend cpu --context 512 --memory 48m --threads 2
    gives 'largest context that would fit is 1,048,576 tokens' 1 plan --backend cpu --memory 100g
}

usage
bad_input
memory
results
random_weights
scaling
others
echo "$tests tests, $failed failed"
[ "$failed" -eq 0 ]
