#!/bin/sh
# Every header compiles alone, as C11 and as C++17; private ones (in kernels/cpu, ..._internal.h)
# as C only. Arguments: the root of the sources, the C compiler, and flags for both languages.
cd "$1" || exit 1
cc=$2
shift 2
bad=0
cxx=$(command -v g++)

compile()
{
    echo "#include \"$header\"" | "$@" -fsyntax-only - || {
        echo "$header does not compile alone: $*"
        bad=1
    }
}

n=0
for header in $(find base topology launch kernels parallel runtime -name '*.h' | sort); do
    n=$((n + 1))
    compile "$cc" -x c -std=c11 -Wall -Wextra -Werror -I. "$@"
    case $header in
    kernels/cpu/* | *_internal.h) ;;
    *) [ -z "$cxx" ] || compile "$cxx" -x c++ -std=c++17 -Wall -Wextra -Werror -I. "$@" ;;
    esac
done
echo "$n headers"
[ $n -gt 0 ] || bad=1
if [ $bad = 0 ] && [ -z "$cxx" ]; then
    echo "skipped: no g++, headers were compiled as C only"
    exit 77
fi
exit $bad
