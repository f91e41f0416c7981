#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_run
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Back up a host now
description:
  - Runs jobs of the host with the agent that role P(stillpoint.backup.backup_client#role) has put there, as the host's own timer would.
  - While it runs, a line for each host says now and then how far it is.
  - The backup does not depend on the connection. If that breaks, the backup goes on, and the module follows it again when
    the host can be reached. If the playbook is interrupted, the backup still goes on.
options:
  job:
    description: The job to run. Default is all jobs of the host, one after the other. One that fails does not keep the next from running.
    type: str
  timeout:
    description: Seconds after which a backup that is still running is told to end and to clean up.
    type: int
    default: 86400
  poll_interval:
    description: Seconds between two looks at how far it is.
    type: int
    default: 3
  reconnect_timeout:
    description: Seconds for which a host that can't be reached any more is tried again before the module gives up following the backup.
    type: int
    default: 600
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
    details: Says what each job would do, and fails where one could not run.
  diff_mode:
    support: none
  async:
    support: none
    details: It is started asynchronously anyway.
seealso:
  - module: stillpoint.backup.backup_info
  - module: stillpoint.backup.backup_restore
"""

EXAMPLES = r"""
- name: Back up now
  stillpoint.backup.backup_run:
    job: etrial
  register: backup

- name: Say what was made
  ansible.builtin.debug:
    msg: "{{ backup.report }}"

- name: Find out whether every job of the host could run
  stillpoint.backup.backup_run:
  check_mode: true
"""

RETURN = r"""
backups:
  description: The backups that were made, each as the summary in its manifest.
  type: list
  elements: dict
  returned: always, but not in check mode
  contains:
    job:
      description: The job.
      type: str
      sample: etrial
    generation:
      description: The new generation.
      type: str
      sample: 2026-11-22T02-00-05Z
    path:
      description: Its directory.
      type: str
      sample: /backups/etrial.example.com/etrial/2026-11-22T02-00-05Z
    time:
      description: The point in time, UTC, ISO 8601.
      type: str
      sample: "2026-11-22T02:00:05.123Z"
    lock:
      description: What was locked and for how long, as in RV(stillpoint.backup.mysql_quiesce_snapshot#module:lock).
      type: dict
    coordinates:
      description: Where the binary log stood, as in RV(stillpoint.backup.mysql_quiesce_snapshot#module:coordinates).
      type: dict
    copy:
      description: Number of files, bytes, and bytes that had to be transferred.
      type: dict
    duration_s:
      description: Seconds that the whole run took.
      type: float
    warnings:
      description: What somebody should look at.
      type: list
      elements: str
report:
  description: What became of each job, for people, one line for each and one for each warning. In check mode what each would do.
  type: list
  elements: str
  returned: always
  sample: ["db1: etrial 2026-11-22T02-00-05Z: locked for 22 ms, 1.4 GiB in 5,124 files, 12.0 MiB of it new, 38.2 s"]
failures:
  description: The jobs that failed, each with C(job), C(msg) and C(exit_code).
  type: list
  elements: dict
  returned: when a job failed
"""

from typing import Any, Dict, List

from ansible_collections.stillpoint.backup.plugins.module_utils import _agent
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host import text
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import CommandError, NotNowError
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door, failure

OWN = ArgumentSpec(
    {
        "job": {"type": "str"},
        "timeout": {"type": "int", "default": 86400},
        "poll_interval": {"type": "int", "default": 3},
        "reconnect_timeout": {"type": "int", "default": 600},
    }
)


def plan(jobs: List[str]) -> Dict[str, Any]:
    """Return what running the jobs would do."""
    report: List[str] = []
    failures: List[Dict[str, Any]] = []
    for job in jobs:
        try:
            report += _agent.tell("plan", job).splitlines()
        except CommandError as error:
            failures.append({"job": job, **failure(error)})
    return outcome({"changed": len(failures) < len(jobs), "report": report}, failures, jobs)


def perform(jobs: List[str], timeout: int) -> Dict[str, Any]:
    """Run the jobs one after the other; return what came of each."""
    backups: List[Dict[str, Any]] = []
    failures: List[Dict[str, Any]] = []
    for job in jobs:
        try:
            backups.append({"job": job, **_agent.ask("run", job, timeout=timeout)})
        except CommandError as error:
            failures.append({"job": job, **failure(error)})
    report = [line for backup in backups for line in lines(backup)]
    return outcome({"changed": bool(backups), "backups": backups, "report": report}, failures, jobs)


def outcome(result: Dict[str, Any], failures: List[Dict[str, Any]], jobs: List[str]) -> Dict[str, Any]:
    """Return a result with the failures in it: the module fails when there is one, and in its words when there is one job."""
    result["report"] += ["%(job)s: %(msg)s" % each for each in failures]
    if not failures:
        return result
    worst = min(failures, key=lambda each: each["exit_code"] == NotNowError.exit_code)
    msg = worst["msg"] if len(jobs) == 1 else "; ".join("%(job)s: %(msg)s" % each for each in failures)
    return {**result, **worst, "failed": True, "failures": failures, "msg": msg}


def lines(backup: Dict[str, Any]) -> List[str]:
    """Return a manifest's summary as one line, and one more for each warning in it."""
    parts = []
    if backup.get("lock"):
        parts.append("locked for %s" % text.duration((backup["lock"].get("held_ms") or 0) / 1000))
    copy = backup["copy"]
    parts.append("%s in %s files" % (text.size(copy["bytes"]), text.count(copy["files"])))
    parts.append("%s of it new" % text.size(copy["bytes_transferred"]))
    parts.append(text.duration(backup["duration_s"]))
    warnings = ["%s: warning: %s" % (backup["job"], warning) for warning in backup.get("warnings") or []]
    return ["%s %s: %s" % (backup["job"], backup["generation"], ", ".join(parts)), *warnings]


def main() -> None:
    module = OWN.module()
    with door(module):
        jobs = _agent.jobs(module.params["job"])
        result = plan(jobs) if module.check_mode else perform(jobs, module.params["timeout"])
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
