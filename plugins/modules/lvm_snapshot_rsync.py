#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: lvm_snapshot_rsync
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Copy directory trees from LVM snapshots with rsync
description:
  - Mounts LVM snapshots read-only where only this module sees them, copies trees from them with rsync, unmounts and removes them.
  - The snapshots are those of M(stillpoint.backup.mysql_quiesce_snapshot); or, with O(src) alone, the module takes them
    itself (sync, snapshot), which is the backup of a file tree that changes while it is being copied.
  - They are removed at the end, also when the copy fails; see O(keep_snapshot). An argument that is wrong, such as an O(dest)
    that does not exist, and an O(dest) that another run is writing to are refused before that, and leave snapshots that were given as they were.
  - What runs that were killed left behind is removed first, as M(stillpoint.backup.backup_run) does it.
  - An O(dest) on a volume that is copied from is a warning.
  - In check mode an O(dest) that does not exist is a warning, as a task before this one may have planned to make it.
  - With O(layout=generations) each run adds a new directory below O(dest) that shares unchanged files with the last one and
    is there whole or not at all. With O(layout=mirror) there is one copy, kept in step.
  - A thick snapshot is watched while rsync runs and extended while the volume group has room. A copy of which the snapshot
    became invalid, even after its last byte was read, fails and is not published.
  - Owners, modes, times, ACLs, extended attributes, hard links and sparse files are kept.
options:
  snapshots:
    description: The snapshots to copy from, as RV(stillpoint.backup.mysql_quiesce_snapshot#module:snapshots) has them.
    type: list
    elements: dict
  point:
    description:
      - All that M(stillpoint.backup.mysql_quiesce_snapshot) returned. Its time, lock, coordinates, server and warnings go into the
        manifest of the new generation.
      - O(snapshots) may then be left out.
    type: dict
  src:
    description:
      - The paths to copy, as they are called on the live system (V(/var/lib/mysql)).
      - With O(snapshots), default is all that these hold. Without, the module takes the snapshots itself.
      - A path that lies in another one is copied as a part of it. A file system that is mounted in a path has to be named.
    type: list
    elements: path
  dest:
    description: The directory to copy to. It has to exist, so that a disk that is not mounted is noticed.
    type: path
    required: true
  layout:
    description:
      - V(generations) makes a new generation each time, C(DEST/2026-11-22T02-00-05Z) with a C(manifest.json) in it.
        What is unchanged is shared with the last one. A file of 256 KiB or more that has changed shares the blocks that have not with the last one's, where
        the file system of O(dest) can do that (XFS, btrfs), unless O(rsync_opts) has C(--whole-file).
      - V(mirror) keeps one copy of each tree in step, C(DEST/files/opt/tree), and deletes there what is no longer at the source.
    type: str
    choices: [generations, mirror]
    default: generations
  exclude:
    description:
      - Patterns of rsync for files that are left out. Never applied to the files of the server, which all belong together.
      - A file system that is mounted in a path, with contents that they leave out as a whole, is no reason to refuse. Its mount point is copied as an
        empty directory.
    type: list
    elements: str
    default: []
  rsync_opts:
    description:
      - Further options for rsync, one to an element, an option and its value in one word. Only those pass that can't break what a backup promises.
      - "What is copied: C(--include), C(--include-from), C(--filter), C(--cvs-exclude), C(--max-size), C(--min-size), C(--ignore-times)."
      - "What is kept of a file: C(--chmod), C(--chown), C(--usermap), C(--groupmap), C(--super), C(--atimes), C(--omit-dir-times), C(--omit-link-times),
        and C(--no-) with C(owner), C(group), C(perms), C(acls), C(xattrs), C(hard-links), C(devices), C(specials), C(D) or C(sparse)."
      - "How it is done: C(--whole-file), C(--no-whole-file), C(--block-size), C(--preallocate), C(--fsync), C(--open-noatime), C(--max-alloc), C(--temp-dir),
        C(--timeout), C(--inc-recursive), C(--no-inc-recursive); in a mirror C(--max-delete), C(--delay-updates), C(--force)."
      - "What is said: C(--verbose), C(--info), C(--debug), C(--itemize-changes), C(--human-readable), C(--no-human-readable), C(--log-file),
        C(--log-file-format)."
    type: list
    elements: str
    default: []
  bwlimit:
    description: The most that rsync may read, in KiB/s or with a unit as in V(50m), V(1.5G). Anything else is refused before anything is done.
    type: str
  checksum:
    description:
      - Compare all files by their contents. Reads everything on both sides.
      - Without, that is done with files of which inode or change time are not what they were, and the same size and time of modification make others unchanged.
    type: bool
    default: false
  keep_snapshot:
    description:
      - Leave the snapshots there when the copy is done, and those that were given also when it fails.
      - M(stillpoint.backup.mysql_quiesce_snapshot) with O(ignore:state=absent) removes them.
    type: bool
    default: false
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.storage
  - stillpoint.backup.failures
requirements:
  - rsync 3.1 or later on the host
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: stillpoint.backup.mysql_quiesce_snapshot
  - module: stillpoint.backup.backup_run
"""

EXAMPLES = r"""
- name: Have a directory for the copies
  ansible.builtin.file:
    path: "{{ item }}"
    state: directory
    mode: "0700"
  loop: [/backups/before-upgrade, /backups/processmaker, /backups/processmaker-mirror]

- name: Snapshot the server and the application tree at one point in time
  stillpoint.backup.mysql_quiesce_snapshot:
    volumes: [/opt/processmaker]
  register: point

- name: Copy both from the snapshots, which are then removed
  stillpoint.backup.lvm_snapshot_rsync:
    point: "{{ point }}"
    dest: /backups/before-upgrade
  register: copy

- name: Say where it is
  ansible.builtin.debug:
    msg: "{{ copy.path }}: {{ copy.files }} files, {{ copy.bytes_transferred | human_readable }} transferred in {{ copy.duration_s }} s"

- name: Copy a file tree alone, from a snapshot that the module takes itself
  stillpoint.backup.lvm_snapshot_rsync:
    src: [/opt/processmaker]
    dest: /backups/processmaker
    exclude: ["*.log"]

- name: Keep one tree in step, as a plain rsync would
  stillpoint.backup.lvm_snapshot_rsync:
    src: [/opt/processmaker]
    dest: /backups/processmaker-mirror
    layout: mirror
    bwlimit: 50m
"""

RETURN = r"""
generation:
  description: Name of the new generation.
  type: str
  returned: success, O(layout=generations), not in check mode
  sample: 2026-11-22T02-00-05Z
path:
  description: The directory that holds the copy. In check mode, the directory that a new one would be made in.
  type: str
  returned: success
  sample: /backups/before-upgrade/2026-11-22T02-00-05Z
files:
  description: Number of files in the copy.
  type: int
  returned: success, not in check mode
  sample: 5124
bytes:
  description: Their size in bytes, in check mode an estimate.
  type: int
  returned: success
  sample: 2147483648
bytes_transferred:
  description: Bytes that were not there already and had to be copied, in check mode an estimate.
  type: int
  returned: success
  sample: 1048576
changes:
  description:
    - Number of files, directories and the like that rsync made, altered or deleted. A mirror that was in step already has none, and the task is not V(changed)
      unless it removed snapshots that it was given, or kept those that it took.
    - In check mode V(none), and the task is V(changed), as what differs is known only from the snapshot.
  type: int
  returned: success
  sample: 12
duration_s:
  description: Seconds that the copy took.
  type: float
  returned: success, not in check mode
  sample: 12.5
snapshot_used_percent:
  description: How full the fullest thick snapshot was at the end. V(none) where there was none.
  type: float
  returned: success, not in check mode
  sample: 3.1
removed:
  description:
    - The snapshots that were removed, as C(VG/NAME); in check mode those that would be.
    - One that can't be removed makes no copy fail. It is a warning, and not in here.
  type: list
  elements: str
  returned: success
  sample: [vg00/stillpoint-20261122t020004-3f9a-0]
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec, request, storage
from ansible_collections.stillpoint.backup.plugins.module_utils._core.backup.copied import CopyRequest, copy, copy_plan
from ansible_collections.stillpoint.backup.plugins.module_utils._module import Telling, difference, door

OWN = ArgumentSpec(
    {
        "snapshots": {"type": "list", "elements": "dict"},
        "point": {"type": "dict"},
        "src": {"type": "list", "elements": "path"},
        "dest": {"type": "path", "required": True},
        "layout": {"type": "str", "choices": ["generations", "mirror"], "default": "generations"},
        "exclude": {"type": "list", "elements": "str", "default": []},
        "rsync_opts": {"type": "list", "elements": "str", "default": []},
        "bwlimit": {"type": "str"},
        "checksum": {"type": "bool", "default": False},
        "keep_snapshot": {"type": "bool", "default": False},
    },
    required_one_of=[["snapshots", "point", "src"]],
)


def perform(module: AnsibleModule) -> Dict[str, Any]:
    """Copy, or only plan it; return the module's result."""
    params = module.params
    point = params["point"]
    if point and not params["snapshots"]:
        params = {**params, "snapshots": point.get("snapshots")}
    asked = request(CopyRequest, params)
    result = (copy_plan if module.check_mode else copy)(asked, Telling(module))
    return {"diff": difference("generations", [], made(result) if params["layout"] == "generations" else []), **result}


def made(result: Dict[str, Any]) -> List[str]:
    """Return the generation that a copy adds, as lines of a diff."""
    return [result["path"] if result["generation"] else "a new generation in %s" % result["path"]]


def main() -> None:
    module = OWN.merge(storage()).module()
    with door(module):
        result = perform(module)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
