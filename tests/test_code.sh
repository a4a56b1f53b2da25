#!/bin/sh
# Passes if a command ends with this exit code: test_code.sh CODE COMMAND..
want=$1
shift
"$@"
got=$?
[ "$got" = "$want" ] && exit 0
echo "exit code $got, expected $want"
exit 1
