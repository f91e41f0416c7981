#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# The original strategy, plainly: a mysql client session holds FLUSH TABLES WITH READ LOCK while the file systems are synced
# and lvcreate runs; then mount, rsync of both halves, umount, lvremove. What is compared with, not what is shipped.
# It prints its phases in milliseconds as one line of JSON. usage: original.sh [TARGET]; with COPY=no in the environment, no copy is made
set -euo pipefail
export LC_ALL=C
volume=${VOLUME:-/dev/vg00/root}
size=${SIZE:-1G}
target=${1:-/backups/original}
snapshot=$(dirname "$volume")/original-snapshot
mount_point=/mnt/original-snapshot
pipes=$(mktemp -d /run/original-XXXXXX)
trap 'rm -rf "$pipes"' EXIT

ms() { echo $((($2 - $1) / 1000)); }

mkdir -p "$mount_point" "$target/opt"
mkfifo "$pipes/statements" "$pipes/answers"

begin=${EPOCHREALTIME/./}
mysql --unbuffered --skip-column-names <"$pipes/statements" >"$pipes/answers" &
session=$!
exec 3>"$pipes/statements" 4<"$pipes/answers"
echo "FLUSH TABLES WITH READ LOCK; SELECT 'locked';" >&3
read -r answer <&4
[ "$answer" = locked ]
locked=${EPOCHREALTIME/./}
sync
synced=${EPOCHREALTIME/./}
lvcreate --quiet --snapshot --size "$size" --name "$(basename "$snapshot")" "$volume" >/dev/null 3>&- 4<&-
created=${EPOCHREALTIME/./}
echo 'UNLOCK TABLES;' >&3
exec 3>&-
wait "$session"
unlocked=${EPOCHREALTIME/./}
mount -o ro "$snapshot" "$mount_point"
mounted=${EPOCHREALTIME/./}
if [ "${COPY:-yes}" = yes ]; then
    rsync -a --delete "$mount_point/var/lib/mysql/" "$target/mysql/"
    rsync -a --delete "$mount_point/opt/processmaker/" "$target/opt/processmaker/"
fi
copied=${EPOCHREALTIME/./}
umount "$mount_point"
lvremove --quiet --yes "$snapshot" >/dev/null
removed=${EPOCHREALTIME/./}

printf '{"waited_ms": %s, "held_ms": %s, "sync_ms": %s, "lvcreate_ms": %s, "mount_ms": %s, "copy_ms": %s, "remove_ms": %s}\n' \
    "$(ms "$begin" "$locked")" "$(ms "$locked" "$unlocked")" "$(ms "$locked" "$synced")" "$(ms "$synced" "$created")" \
    "$(ms "$unlocked" "$mounted")" "$(ms "$mounted" "$copied")" "$(ms "$copied" "$removed")"
