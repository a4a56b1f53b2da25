#!/bin/bash
# The hybrid model beside the same shape with MLA in every layer: bytes of cache a token, prefill, decoding. Prints a
# table and writes bench/results/compare-MACHINE.csv.
#
#     bench/compare.sh [--pair small|published] [--program COMMAND] [--backend auto|cpu|cuda] [--machine NAME]
#                      [--prefill LENGTHS] [--decode LENGTHS] [--repeat N] [-- OPTIONS OF bench]
#
# COMMAND may have a launcher in front: 'launch/longhaul-mpirun -n 2'. Weights are synthetic, and so is what the caches
# hold when decoding begins, marked `filled`: nothing is computed for a long context but the tokens after it. LENGTHS
# of --decode leave room for 16 tokens a repeat: 1023k, not 1m, for a model of 1m.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
pair=small program=$root/build/release/longhaul backend=auto machine='' prefill=1k,8k decode=1k,16k,64k repeat=3

fail()
{
    echo "compare: $1" >&2
    exit 64
}

while [ $# -gt 0 ] && [ "$1" != -- ]; do
    case $1 in
    --pair | --program | --backend | --machine | --prefill | --decode | --repeat)
        [ $# -ge 2 ] || fail "$1: expected a value"
        declare "${1#--}=$2"
        shift 2
        ;;
    *) fail "unknown option $1; the first lines of $0 list them" ;;
    esac
done
[ $# -eq 0 ] || shift
read -ra run <<<"$program"
case $pair in
small) hybrid=$root/bench/configs/small-hybrid mla=$root/bench/configs/small-all-mla ;;
published) hybrid=$root/tests/golden/kimi-linear-48b mla=$root/bench/configs/all-mla ;;
*) fail "--pair $pair: expected small or published" ;;
esac
if [ -z "$machine" ]; then
    machine=$(awk -F ': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)
    machine="${machine:-unknown CPU} $(nproc) cores"
fi
machine=${machine//[,\"]/} # a field of CSV
name=$(tr 'A-Z ' 'a-z-' <<<"$machine" | tr -cd 'a-z0-9-')
out=$root/bench/results/compare-$name.csv
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# measure LABEL DIRECTORY OPTIONS..: this model's rows on standard output.
measure()
{
    local label=$1 model=$2 bytes
    shift 2
    "${run[@]}" bench --model "$model" --weights synthetic --fill synthetic --backend "$backend" --prefill "$prefill" \
        --decode "$decode" --repeat "$repeat" --quiet --csv "$work/bench.csv" "$@" >"$work/table"
    cat "$work/table" >&2
    "${run[@]}" plan --model "$model" --backend "$(awk -F , 'NR == 2 { print $6 }' "$work/bench.csv")" --context 64k \
        --json "$work/plan.json" --quiet >"$work/plan"
    bytes=$(awk -F '[:, ]+' '/"latent_cache"/ { cache = $3 } /"(kda|conv)_state"/ { state += $3 }
                             END { print cache / 65536 "," state }' "$work/plan.json")
    awk -F , -v OFS=, -v date="$(date +%F)" -v machine="$machine" -v pair="$pair" -v model="$label" -v bytes="$bytes" '
        function put(what, tokens, value, sd, unit, caches) {
            print date, $11, machine, $6, pair, model, what, tokens, $4, $5, value, sd, unit, caches
        }
        $1 == "prefill" { put($1, $2, sprintf("%.1f", $9), sprintf("%.1f", $9 * $8 / $7), "tokens/s", $12) }
        $1 == "decode" { put($1, $2, sprintf("%.4f", 1e3 * $7), sprintf("%.4f", 1e3 * $8), "ms/token", $12) }
        END {
            split(bytes, b, ",")
            put("latents", "", b[1], "", "bytes/token", "planned")
            put("states", "", b[2], "", "bytes", "planned")
        }' "$work/bench.csv"
}

echo date,commit,machine,backend,pair,model,what,tokens,ranks,threads_per_rank,value,sd,unit,caches >"$work/all.csv"
measure hybrid "$hybrid" "$@" >>"$work/all.csv"
measure all-mla "$mla" "$@" >>"$work/all.csv"
cp "$work/all.csv" "$out"

# The ratio is how many times better the hybrid is.
awk -F , '
    NR == 1 { next }
    { key = $7 SUBSEP $8 }
    $6 == "hybrid" { hybrid[key] = $11; order[++n] = key; unit[key] = $13; next }
    { mla[key] = $11 }
    END {
        printf "\n%-10s %10s %-12s %14s %14s %8s\n", "", "tokens", "", "hybrid", "all MLA", "times"
        for (i = 1; i <= n; i++) {
            k = order[i]; split(k, part, SUBSEP); h = hybrid[k]; m = mla[k]
            ratio = part[1] == "states" ? "" : sprintf("%.2f", part[1] == "prefill" ? h / m : m / h)
            printf "%-10s %10s %-12s %14s %14s %8s\n", part[1], part[2], unit[k], h, m, ratio
        }
    }' "$out"
echo "rows: ${out#"$root"/}"
