#!/bin/sh
# Who may include whom, who may read the environment: fails on an arrow that points up. First
# argument: the root of the sources.
cd "$1" || exit 1
bad=0

complain()
{
    [ -z "$2" ] && return
    echo "$1:"
    echo "$2" | sed 's/^/    /'
    bad=1
}

# "file:line:text" of every include in a folder's own sources (the program's parts aside).
includes()
{
    find "$1" -name '*.[ch]' -o -name '*.cu' -o -name '*.cuh' | sort | xargs -r grep -nHE '^[[:space:]]*#[[:space:]]*include'
}

# may FOLDER PATTERN: includes of ours in FOLDER must match one of the patterns, from the root.
may()
{
    [ -d "$1" ] || return
    complain "$1 may include only $2" "$(includes "$1" | grep -v "^$1/$3" | grep '"' | grep -vE "\"($2)\"")"
}

any='[a-z0-9_]+\.h'
may base "base/$any" -
may topology "(base|topology)/$any" -
may launch "(base|topology|launch)/$any" -
may kernels "(base|kernels)/$any|kernels/(cpu|cuda)/[a-z0-9_]+\.(h|cuh)" -
may parallel "(base|kernels|parallel)/$any|kernels/cuda/stream\.h" -
may runtime "(base|topology|launch|kernels|parallel|runtime)/$any" '\(cli\|server\)/'
for program in cli server; do
    may runtime/$program "runtime/longhaul\.h|runtime/$program/$any|(base|launch|topology)/$any" -
done

# only HEADER PATTERN: files whose path matches may include the header of another library.
only()
{
    complain "$1 is only for $2" "$(for dir in base topology launch kernels parallel runtime; do
        [ -d $dir ] && includes $dir
    done | grep -E "[<\"]$1[>\"]" | grep -vE "^($2):")"
}

only 'mpi\.h' 'parallel/comm_mpi\.c'
only 'nccl\.h' 'parallel/comm_nccl\.c'
only 'hwloc\.h' 'topology/[^:]*'
only 'cblas\.h' 'kernels/cpu/[^:]*'
only 'cuda[a-z_]*\.h|cublas[a-zA-Z0-9_]*\.h' 'kernels/cuda/[^:]*|parallel/comm_nccl\.c'

sources="base topology launch kernels parallel runtime tests"
complain "a .c file is included" "$(grep -rnE --include='*.[ch]' '#[[:space:]]*include.*\.c[">]' $sources)"
complain "a private header of another folder" "$(grep -rnE --include='*.[ch]' '#[[:space:]]*include "[a-z/]*_internal\.h"' $sources |
    grep -v '^tests/' | awk -F'[:"]' '{ own = $1; sub(/\/[^\/]*$/, "", own); theirs = $4; sub(/\/[^\/]*$/, "", theirs); if (own != theirs) print }')"
complain "getenv is only for base/opts.c and launch/rank.c" "$(grep -rnw --include='*.[ch]' -E 'getenv|secure_getenv|environ' $sources |
    grep -vE '^(base/opts\.c|launch/rank\.c|tests/[^:]*):')"
exit $bad
