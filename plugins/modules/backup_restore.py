#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_restore
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Put a backup of a host back
description:
  - Puts a generation back in place with the host's agent. The files are copied beside the live ones and compared with the
    checksums of the manifest first; only then is the server stopped, old and new are exchanged, and the server is started.
  - What is replaced is kept beside it, as C(/var/lib/mysql.replaced-TIME), until somebody runs C(stillpoint discard JOB).
  - A dump is loaded into the running server instead, beside the databases that are there. Those are dropped when the load has ended well, and are not kept.
  - A generation that does not agree with its checksums is refused before anything live is touched.
  - The restore does not depend on the connection. If that breaks, the restore goes on, and the module follows it again when
    the host can be reached.
options:
  job:
    description: The job whose backup it is. May be left out where the host has a single job.
    type: str
  generation:
    description: The generation to put back. Default is the newest good one.
    type: str
  from_host:
    description: Put a backup of this other host back, which the job's repository holds. Default is the host's own.
    type: str
  database:
    description: Of a dump, load this database alone.
    type: str
  table:
    description:
      - Put this table or view alone back, C(DATABASE.TABLE), into the running server.
      - Of a copy of the server's files, a scratch server reads it; the live table is dropped only when all rows are in the server.
    type: str
  path:
    description:
      - Of the files, put this directory or file alone back, as it is called on the live system (V(/opt/processmaker/shared/sites)).
      - What it replaces is kept in the directory that it lies in, as C(.stillpoint-part-replaced-TIME-NAME), which no backup takes. What the job
        excludes is in no backup, and goes out of its place with the rest.
    type: str
  as:
    description: With O(table), not of a dump, the name that the table gets, C(DATABASE.TABLE). It must be free.
    type: str
  to:
    description: Put the trees below this directory and leave everything live alone. No server is stopped.
    type: path
  only:
    description: Put the database or the files alone back and leave the other half alone.
    type: str
    choices: [database, files]
  resume_replication_and_events:
    description:
      - A copy of another host's server, put back in place, neither replicates nor runs events here until somebody says so. With this, it goes on as it
        did there.
    type: bool
    default: false
  until_time:
    description:
      - Then replay archived binary logs, up to this moment. Everything that was committed before that second is there, and nothing after it.
      - As in V(2026-11-22 14:03:07Z) or V(2026-11-22 14:03:07+02:00); without a zone it is the host's own.
      - Without O(generation), the newest one from before that moment is taken that is not known to be bad.
      - Of O(until_time), O(until_gtid), O(before_gtid) and O(until_position) only one is given.
    type: str
  until_gtid:
    description: The same, up to and with this transaction, as V(0-1-4710), or on MySQL C(UUID:NUMBER).
    type: str
  before_gtid:
    description: The same, up to and without this transaction.
    type: str
  until_position:
    description: The same, up to this place in the server's binary logs, as V(mysql-bin.000042:1234).
    type: str
  timeout:
    description: Seconds after which a restore that is still running is told to end and to clean up.
    type: int
    default: 86400
  poll_interval:
    description: Seconds between two looks at how far it is.
    type: int
    default: 3
  reconnect_timeout:
    description: Seconds for which a host that can't be reached any more is tried again before the module gives up following the restore.
    type: int
    default: 600
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
    details: Returns what would be done, and fails where the restore would be refused.
  diff_mode:
    support: none
  async:
    support: none
    details: It is started asynchronously anyway.
seealso:
  - module: stillpoint.backup.backup_info
  - module: stillpoint.backup.backup_run
"""

EXAMPLES = r"""
- name: See what a restore of the newest good backup would do
  stillpoint.backup.backup_restore:
    job: etrial
  check_mode: true
  register: plan

- name: Put it below another directory, with nothing live touched
  stillpoint.backup.backup_restore:
    job: etrial
    to: /backups/look

- name: Look at the database as it was right before a transaction, with nothing live touched
  stillpoint.backup.backup_restore:
    job: etrial
    before_gtid: "{{ gtid_of_the_mistake }}"
    to: /backups/before
  when: gtid_of_the_mistake is defined

- name: Put the database back to the second before a mistake, as "2026-11-22 14:03:07Z"
  stillpoint.backup.backup_restore:
    job: etrial
    until_time: "{{ second_of_the_mistake }}"

- name: Put a backup of another host below a directory of this one
  stillpoint.backup.backup_restore:
    job: etrial
    from_host: "{{ other_host }}"
    to: /backups/theirs
  when: other_host is defined

- name: Put one directory of the application tree back
  stillpoint.backup.backup_restore:
    job: etrial
    path: /opt/processmaker/shared

- name: Put it back in place
  stillpoint.backup.backup_restore:
    job: etrial
  register: restored
"""

RETURN = r"""
job:
  description: The job.
  type: str
  returned: success
  sample: etrial
part:
  description: What was put back where it was not all of it, a path, or in words the table or the database. Else V(none).
  type: raw
  returned: success, not in check mode
generation:
  description: The generation that was put back, in check mode the one that would be.
  type: str
  returned: success
  sample: 2026-11-22T02-00-05Z
replaced:
  description: What was there before, and where it is kept.
  type: list
  elements: raw
  returned: success, not in check mode
files:
  description: Number of files that were put back.
  type: int
  returned: success, not in check mode
  sample: 5124
bytes:
  description: Their size in bytes.
  type: int
  returned: success, not in check mode
  sample: 1503238553
duration_s:
  description: Seconds that it took.
  type: float
  returned: success, not in check mode
  sample: 41.5
service:
  description: The server's unit that was stopped and started, V(none) where none was.
  type: raw
  returned: success, not in check mode
disabled:
  description: Of another host's server, how it is let replicate and run events, which it is kept from.
  type: list
  elements: str
  returned: success, not in check mode
recovery:
  description: What was replayed, V(none) where nothing was.
  type: raw
  returned: success, not in check mode
report:
  description: What was done, for people. In check mode what would be, one step to a line.
  type: list
  elements: str
  returned: always
  sample: ["db1: etrial 2026-11-22T02-00-05Z is back: 1.4 GiB in 5,124 files, 41.5 s"]
"""

from typing import Any, Dict, List

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.stillpoint.backup.plugins.module_utils import _agent
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host import text
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door

OWN = ArgumentSpec(
    {
        "job": {"type": "str"},
        "generation": {"type": "str"},
        "from_host": {"type": "str"},
        "database": {"type": "str"},
        "table": {"type": "str"},
        "path": {"type": "str"},
        "as": {"type": "str"},
        "to": {"type": "path"},
        "only": {"type": "str", "choices": ["database", "files"]},
        "resume_replication_and_events": {"type": "bool", "default": False},
        "until_time": {"type": "str"},
        "until_gtid": {"type": "str"},
        "before_gtid": {"type": "str"},
        "until_position": {"type": "str"},
        "timeout": {"type": "int", "default": 86400},
        "poll_interval": {"type": "int", "default": 3},
        "reconnect_timeout": {"type": "int", "default": 600},
    },
    mutually_exclusive=[["until_time", "until_gtid", "before_gtid", "until_position"], ["only", "path", "database", "table"]],
)

# The command's options by those of the module. That one is not `until`: a keyword of tasks, where an indentation that slips would put it.
OPTIONS = {
    **{
        name: "--" + name.replace("_", "-")
        for name in ("from_host", "to", "only", "path", "database", "table", "as", "until_gtid", "before_gtid", "until_position")
    },
    "until_time": "--until",
}


def command(params: Dict[str, Any], job: str) -> List[str]:
    """Return the agent's words for a restore."""
    words = ["restore", job, *([params["generation"]] if params["generation"] else [])]
    words += ["%s=%s" % (option, params[name]) for name, option in OPTIONS.items() if params[name] is not None]
    words += ["--resume-replication-and-events"] if params["resume_replication_and_events"] else []
    return words


def plan(words: List[str]) -> Dict[str, Any]:
    """Return what the restore would do."""
    facts = _agent.ask(*words, "--dry-run")
    return {"generation": facts["generation"], "report": _agent.tell(*words, "--dry-run").splitlines()}


def perform(words: List[str], job: str, timeout: int) -> Dict[str, Any]:
    """Restore; return what came of it."""
    done = _agent.ask(*words, "--yes", timeout=timeout)
    size, files, took = text.size(done["bytes"]), text.count(done["files"]), text.duration(done["duration_s"])
    what = "%s of " % done["part"] if done.get("part") else ""
    line = "%s%s %s is back: %s in %s files, %s" % (what, job, done["generation"], size, files, took)
    kept = ["what was replaced is kept as %s" % each for each in done["replaced"]]
    return {**done, "report": [line, *("warning: %s" % each for each in done["warnings"]), *done.get("disabled", []), *kept]}


def finish(module: AnsibleModule, job: str, result: Dict[str, Any]) -> None:
    """End the module with what came of it, and what should be known of the backup, as that its proof failed, as Ansible's own warnings."""
    for warning in result.pop("warnings", []):
        module.warn(warning)
    module.exit_json(changed=True, job=job, **{key: value for key, value in result.items() if key not in ("job", "changed")})


def main() -> None:
    module = OWN.module()
    params = module.params
    with door(module):
        job = _agent.only_job(params["job"])
        words = command(params, job)
        result = plan(words) if module.check_mode else perform(words, job, params["timeout"])
    finish(module, job, result)


if __name__ == "__main__":
    main()
