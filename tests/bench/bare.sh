#!/bin/bash
# SPDX-License-Identifier: GPL-3.0-or-later
# A bare `rsync -a` of a snapshot of both halves, from cold caches: what a first backup's copy is compared with.
# It prints, as JSON, how long rsync took, and how long until its copy was on the disk. usage: bare.sh [TARGET]
set -euo pipefail
volume=/dev/vg00/root
snapshot=/dev/vg00/bare-snapshot
mount_point=/mnt/bare-snapshot
target=${1:-/backups/bare}

mkdir -p "$mount_point" "$target"
sync
lvcreate --quiet --quiet --snapshot --size 3G --name "$(basename "$snapshot")" "$volume" >/dev/null
mount -o ro "$snapshot" "$mount_point"
echo 3 > /proc/sys/vm/drop_caches
begin=${EPOCHREALTIME/./}
rsync -a "$mount_point/var/lib/mysql" "$mount_point/opt/processmaker" "$target/"
copied=${EPOCHREALTIME/./}
sync -f "$target"
synced=${EPOCHREALTIME/./}
umount "$mount_point"
lvremove --quiet --quiet --yes "$snapshot" >/dev/null
echo "{\"copy_ms\": $(((copied - begin) / 1000)), \"synced_ms\": $(((synced - begin) / 1000))}"
