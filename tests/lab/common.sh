# SPDX-License-Identifier: GPL-3.0-or-later
# Sourced by the lab's shell scripts: where things are, and how to act as root.
# shellcheck shell=bash
LAB=$(dirname "$(readlink -f "${BASH_SOURCE[0]}")")
# shellcheck disable=SC2034  # for those who source this
PROJECT=$(readlink -f "$LAB/../..")
export STILLPOINT_CACHE=${STILLPOINT_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stillpoint}
mkdir -p "$STILLPOINT_CACHE"

say() { printf '== %s\n' "$*" >&2; }
die() { printf '%s: %s\n' "${0##*/}" "$*" >&2; exit 1; }

# as_root COMMAND...: as it is for root, through sudo for anyone else
as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@" </dev/null; fi
}

# locked NAME COMMAND...: only one clone at a time; the kernel frees the lock when its holder ends, however it ends
locked() {
    local name=$1; shift
    mkdir -p "$STILLPOINT_CACHE/locks"
    ( flock 9; "$@" 9>&- ) 9>>"$STILLPOINT_CACHE/locks/$name"
}
