#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: mysql_quiesce_snapshot
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Snapshot the volumes of a running MySQL or MariaDB server at one point in time
description:
  - Takes the cheapest lock that is enough for the storage engines in use, flushes the server's logs, reads the binary log's
    coordinates, takes an LVM snapshot of every logical volume that holds files of the server (and of those named in
    O(volumes)), and lets the server go on. Users wait for a snapshot, not for a copy.
  - What holds the server's files is found by asking the server, never assumed. Volumes that can't be snapshotted together,
    a volume group without room, a missing privilege are refused before anything is locked.
  - Statements that the lock would have to queue behind, with every other user behind it, are looked for first. See
    O(long_query_action).
  - What runs that were killed left behind is removed first, and put back on the server, as M(stillpoint.backup.backup_run) does it.
  - That the lock was still held when the snapshot was taken is proven before the snapshots are handed over; if it was not,
    for example because somebody killed the session, they are removed and the module fails.
  - The snapshots stay until O(state=absent), or until M(stillpoint.backup.lvm_snapshot_rsync) has copied what they hold, or has
    failed while it did. They carry LVM tags, by which O(state=absent) finds them again; somebody else's snapshots are never touched.
options:
  volumes:
    description:
      - Further logical volumes (V(vg00/root), V(/dev/vg00/root)), or paths on them, that belong to the same point in time.
        The volumes of the server's own files need not be named.
    type: list
    elements: str
    default: []
  exclude:
    description:
      - Patterns of rsync for what is not going to be copied of the paths in O(volumes). A file system that is mounted there is no reason to refuse.
      - They come back in C(holds), and M(stillpoint.backup.lvm_snapshot_rsync) leaves the same out, with what the server makes anew at each start.
    type: list
    elements: str
    default: []
  state:
    description:
      - V(present) takes new snapshots each time.
      - V(absent) removes the snapshots of O(run_id), or without it all that this collection has left on the host and that no
        running process owns.
      - V(rolled_back) makes the volumes what they were when the snapshots of O(run_id) were taken, in seconds, by merging these into them.
        Everything that was written to the volumes since is lost for good. The server is stopped, the volumes are unmounted, merged and mounted, and the server
        is started.
      - V(rolled_back) is refused where a snapshot of the run is missing or has overflowed, where the repository of a job or the running
        system lies on one of the volumes, or where another process uses one; it is named then. What was interrupted is finished by the same task.
    type: str
    choices: [present, absent, rolled_back]
    default: present
  run_id:
    description: With O(state=absent), remove only the snapshots of this run, as returned in RV(run_id). Needed with O(state=rolled_back).
    type: str
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.mysql
  - stillpoint.backup.locking
  - stillpoint.backup.storage
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
seealso:
  - module: stillpoint.backup.lvm_snapshot_rsync
  - module: stillpoint.backup.backup_run
"""

EXAMPLES = r"""
- name: Take a quiesced snapshot before an upgrade
  stillpoint.backup.mysql_quiesce_snapshot:
    volumes: [/opt/processmaker]
  register: before_upgrade

- name: Say how long users were held up, and where the binary log stood
  ansible.builtin.debug:
    msg: >-
      {{ before_upgrade.lock.method }} for {{ before_upgrade.lock.held_ms }} ms,
      {{ before_upgrade.coordinates.file | default('no binary log', true) }}

- name: The upgrade went well, so drop the snapshot
  stillpoint.backup.mysql_quiesce_snapshot:
    state: absent
    run_id: "{{ before_upgrade.run_id }}"

- name: Or it went wrong, so go back to the snapshot and lose what was written since
  stillpoint.backup.mysql_quiesce_snapshot:
    state: rolled_back
    run_id: "{{ before_upgrade.run_id }}"
  when: upgrade_went_wrong | default(false)

- name: Rather give up at once than wait for a long report to end
  stillpoint.backup.mysql_quiesce_snapshot:
    long_query_action: fail
    long_query_threshold: 30
    snapshot_size: 10%ORIGIN

- name: Remove every snapshot that this collection has left on the host
  stillpoint.backup.mysql_quiesce_snapshot:
    state: absent
"""

RETURN = r"""
run_id:
  description: Names the run. It is in the tags of its snapshots.
  type: str
  returned: success, O(state=present), not in check mode
  sample: 20261122t020004-3f9a
time:
  description: The point in time, UTC, ISO 8601.
  type: str
  returned: success, O(state=present), not in check mode
  sample: "2026-11-22T02:00:05.123Z"
snapshots:
  description: The snapshots, one for each logical volume. In check mode those that would be taken, as far as is known.
  type: list
  elements: dict
  returned: success, O(state=present)
  contains:
    vg:
      description: The volume group.
      type: str
      sample: vg00
    origin:
      description: The logical volume that the snapshot is of.
      type: str
      sample: root
    name:
      description: The snapshot's name.
      type: str
      returned: not in check mode
      sample: stillpoint-20261122t020004-3f9a-0
    device:
      description: The snapshot's device.
      type: str
      returned: not in check mode
      sample: /dev/vg00/stillpoint-20261122t020004-3f9a-0
    dm_name:
      description: The snapshot's name in the device mapper.
      type: str
      returned: not in check mode
      sample: vg00-stillpoint--20261122t020004--3f9a--0
    thin:
      description: Whether it is a thin snapshot, which takes its space from the pool.
      type: bool
      sample: false
    size_bytes:
      description: What may be rewritten before the snapshot is full. V(none) for a thin snapshot in check mode.
      type: int
      sample: 1073741824
    fs_type:
      description: The file system on it.
      type: str
      sample: ext4
    mount_point:
      description: Where the origin is mounted.
      type: str
      sample: /
    holds:
      description:
          - Which of the server's paths and of the asked paths lie on it (C(path)), where below its root (C(below)), and what
            they are (C(role), V(datadir) for the data directory, V(files) for a path that was asked for), and rsync's patterns for what
            is not to be copied of them (C(left_out)).
      type: list
      elements: dict
      sample: [{role: datadir, path: /var/lib/mysql, below: var/lib/mysql, left_out: [/ibtmp1]}]
    pool:
      description: The thin pool that a thin snapshot lies in. V(none) for a thick one.
      type: str
      returned: not in check mode
lock:
  description: What was locked and for how long.
  type: dict
  returned: success, O(state=present)
  contains:
    method:
      description: The lock that was taken.
      type: str
      sample: backup_stage
    reason:
      description: Why this one.
      type: str
      sample: 10.11.19-MariaDB stops commits with it without waiting for running statements
    waited_ms:
      description: Milliseconds from asking for the lock until it was granted.
      type: float
      sample: 1.4
    held_ms:
      description: Milliseconds from asking for it until it was released, for which writers waited; with V(instance) DDL alone.
      type: float
      sample: 21.9
    frozen_ms:
      description: Milliseconds for which the device mapper held back writes to the volumes.
      type: float
      sample: 8.0
    skew_ms:
      description:
        - Milliseconds from the first volume's freeze to the last one's, at most; 0 for one volume.
        - The lock was held from before the first until after the last.
      type: float
      sample: 0.0
    released_at:
      description: What showed that the snapshot's point in time had been reached, so that the lock could go.
      type: str
      sample: suspended
    guard_waited_ms:
      description: Milliseconds that were spent on long statements before, with nothing locked.
      type: float
      sample: 4.1
    killed:
      description: The statements that were ended, with O(long_query_action=kill).
      type: list
      elements: raw
      sample: []
    between:
      description: With a lock that lets commits go on, the coordinates before and after the snapshot, when they differ.
      type: list
      elements: dict
      returned: on MySQL, with V(instance) or V(none)
coordinates:
  description: Where the binary log stood. V(none) where the server writes none, and where commits went on during the snapshot.
  type: dict
  returned: success, O(state=present), not in check mode
  contains:
    file:
      description: The binary log's file.
      type: str
      sample: mysqld-bin.000042
    position:
      description: The position in it.
      type: int
      sample: 3083129
    gtid:
      description: The global transaction identifiers that had been executed.
      type: str
      sample: 0-1-48213
    replica:
      description: On a replica, what it had executed of each source's binary log.
      type: list
      elements: dict
      sample: [{channel: "", host: db1, port: 3306, file: mysqld-bin.000007, position: 92134, gtid: 0-1-48213, uses_gtid: true}]
server:
  description: The server.
  type: dict
  returned: success, O(state=present)
  contains:
    flavour:
      description: V(mariadb), V(mysql) or V(percona).
      type: str
      sample: mariadb
    version:
      description: Its version.
      type: str
      sample: 10.11.6-MariaDB
    datadir:
      description: Its data directory.
      type: str
      sample: /var/lib/mysql
    uuid:
      description: Its identity, where it has one.
      type: str
    unit:
      description: The systemd unit that runs it, where there is one.
      type: str
      sample: mariadb.service
volumes:
  description: The volumes that went back, in check mode those that would, as C(VG/NAME).
  type: list
  elements: str
  returned: success, O(state=rolled_back)
  sample: [data/mysql]
replaced:
  description: Where binary logs were set aside that lie on another volume and do not follow on what the server went back to.
  type: list
  elements: str
  returned: success, O(state=rolled_back), not in check mode
removed:
  description: The snapshots that were removed, in check mode those that would be.
  type: list
  elements: dict
  returned: success, O(state=absent)
  sample: [{vg: vg00, name: stillpoint-20261122t020004-3f9a-0, origin: root}]
"""

from typing import Any, Dict, List, Optional

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec, connection, request, storage
from ansible_collections.stillpoint.backup.plugins.module_utils._core.backup.quiesced import QuiesceRequest, quiesce_plan, quiesce_snapshot, removable
from ansible_collections.stillpoint.backup.plugins.module_utils._core.lvm import ownership
from ansible_collections.stillpoint.backup.plugins.module_utils._core.restore.rollback import execute
from ansible_collections.stillpoint.backup.plugins.module_utils._core.restore.rollback import plan as rollback_plan
from ansible_collections.stillpoint.backup.plugins.module_utils._locking import locking
from ansible_collections.stillpoint.backup.plugins.module_utils._module import Telling, difference, door, have_libraries

OWN = ArgumentSpec(
    {
        "volumes": {"type": "list", "elements": "str", "default": []},
        "exclude": {"type": "list", "elements": "str", "default": []},
        "state": {"type": "str", "choices": ["present", "absent", "rolled_back"], "default": "present"},
        "run_id": {"type": "str"},
    },
    required_if=[["state", "rolled_back", ["run_id"]]],
)


def present(module: AnsibleModule) -> Dict[str, Any]:
    """Take the snapshots, or only plan them; return the module's result."""
    asked = request(QuiesceRequest, module.params)
    reporter = Telling(module)
    result = quiesce_plan(asked) if module.check_mode else quiesce_snapshot(asked, reporter)
    for warning in result.pop("warnings", ()):
        reporter.warn(warning)
    return {"changed": True, "diff": difference("snapshots", [], lines(result["snapshots"])), **result}


def absent(run_id: Optional[str], check_mode: bool) -> Dict[str, Any]:
    """Remove the snapshots of a run, or all leftovers, or only find them; return the module's result."""
    removed = removable(run_id) if check_mode else ownership.clean(run_id=run_id, kept=True)
    return {"changed": bool(removed), "removed": removed, "diff": difference("snapshots", lines(removed), [])}


def rolled_back(module: AnsibleModule, run_id: str) -> Dict[str, Any]:
    """Go back to the snapshots of a run, or only plan it; return the module's result."""
    plan = rollback_plan.make(run_id)
    for warning in plan.warnings:
        module.warn(warning)
    names = [volume.name for volume in plan.volumes]
    diff = difference("volumes", names, ["%s as of %s" % (name, plan.time) for name in names])
    result = {"changed": True, "volumes": names, "diff": diff}
    return result if module.check_mode else {**result, "replaced": execute.execute(plan, Telling(module)).replaced}


def lines(snapshots: List[Dict[str, Any]]) -> List[str]:
    """Return each snapshot as one line of a diff."""
    return ["%s of %s/%s" % ("snapshot %(vg)s/%(name)s" % each if "name" in each else "a snapshot", each["vg"], each["origin"]) for each in snapshots]


def main() -> None:
    module = OWN.merge(connection()).merge(locking()).merge(storage()).module()
    have_libraries("pymysql")
    params = module.params
    with door(module):
        if params["state"] == "present":
            result = present(module)
        elif params["state"] == "absent":
            result = absent(params["run_id"], module.check_mode)
        else:
            result = rolled_back(module, params["run_id"])
    module.exit_json(**result)


if __name__ == "__main__":
    main()
