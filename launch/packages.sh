# shellcheck shell=sh
# Sourced by demo and check: installs what the build needs on Debian and its relatives, and says what
# it does. Where everything is there it does nothing.

packages_needed='build-essential cmake pkg-config libopenmpi-dev openmpi-bin libhwloc-dev libopenblas-dev libjansson-dev'

packages_missing()
{
    for package in $packages_needed; do
        [ "$(dpkg-query -W -f '${Status}' "$package" 2>/dev/null)" = 'install ok installed' ] ||
            printf '%s ' "$package"
    done
}

packages_install()
{
    if ! command -v dpkg-query >/dev/null; then
        echo "packages: not a Debian system; these must be there: $packages_needed"
        return 0
    fi
    missing=$(packages_missing)
    [ -n "$missing" ] || return 0
    as_root=
    if [ "$(id -u)" -ne 0 ]; then
        as_root=sudo
        command -v sudo >/dev/null || {
            echo "packages: missing, and neither root nor sudo: $missing" >&2
            return 69
        }
        # Without a terminal nobody can answer: no question is asked.
        [ -t 0 ] || as_root='sudo -n'
    fi
    echo "packages: installing $missing"
    $as_root apt-get update -qq
    # shellcheck disable=SC2086 # a list of words
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# The faster of the two build tools that is there.
packages_generator()
{
    if command -v ninja >/dev/null; then
        echo Ninja
    else
        echo 'Unix Makefiles'
    fi
}
