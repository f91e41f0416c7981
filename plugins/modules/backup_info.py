#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: backup_info
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: List the backups of a host
description:
  - Asks the host's agent which jobs there are, how they stand against their schedules, and which generations each of them has.
options:
  job:
    description: List only the generations of this job. Default is all jobs of the host.
    type: str
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
    details: Changes nothing in either mode.
  diff_mode:
    support: none
seealso:
  - module: stillpoint.backup.backup_run
  - module: stillpoint.backup.backup_restore
"""

EXAMPLES = r"""
- name: List the backups of the host
  stillpoint.backup.backup_info:
  register: known

- name: Insist that every job has a usable backup and that none is overdue by its own schedule
  ansible.builtin.assert:
    that: known.status | map(attribute='wrong') | flatten | length == 0
    fail_msg: "{{ known.status | map(attribute='wrong') | flatten | join('; ') }}"
"""

RETURN = r"""
jobs:
  description: The names of the jobs.
  type: list
  elements: str
  returned: always
  sample: [etrial]
backups:
  description: The generations, newest first.
  type: list
  elements: dict
  returned: always
  contains:
    job:
      description: The job.
      type: str
      sample: etrial
    generation:
      description: The generation's name.
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
    size_bytes:
      description: The size of its files.
      type: int
      sample: 1503238553
    state:
      description: V(good) where it is proven to start or has no database in it, V(bad) where damage was found or its proof failed, else V(unproven).
      type: str
      sample: good
status:
  description: How each job stands, held against its own schedule.
  type: list
  elements: dict
  returned: always
  contains:
    job:
      description: The job.
      type: str
      sample: etrial
    overdue:
      description: In a sentence, what is overdue. V(none) where nothing is.
      type: raw
      sample: "overdue: no backup since 2026-10-22 02:20 UTC, by schedule (02:00) one was due on 2026-10-23 02:00 UTC"
    wrong:
      description: Sentences on all that somebody has to see to, what is overdue first.
      type: list
      elements: str
    notes:
      description: Sentences on what somebody should know.
      type: list
      elements: str
    newest:
      description: The newest backup that is not bad, as in RV(backups). V(none) where there is none.
      type: raw
    backup:
      description: The C(schedule), until when (C(due)) the next backup has to be there, and C(overdue). V(none) without a schedule.
      type: raw
    verify:
      description: The same of the next verification.
      type: raw
directories:
  description: Where backups of this host lie in the repositories of these jobs, also those of jobs that it no longer has.
  type: list
  elements: str
  returned: always
  sample: [/backups/etrial.example.com/etrial]
failures:
  description: The jobs that could not be looked at, each with C(job), C(msg) and C(exit_code). The module then fails.
  type: list
  elements: dict
  returned: when a job could not be looked at
"""

import glob
import os
from typing import Any, Dict, List, Sequence

from ansible_collections.stillpoint.backup.plugins.module_utils import _agent
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import CommandError, StillpointError
from ansible_collections.stillpoint.backup.plugins.module_utils._core.job import file
from ansible_collections.stillpoint.backup.plugins.module_utils._core.job.names import host_name, job_names
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door, failure, have_libraries

OWN = ArgumentSpec({"job": {"type": "str"}})


def listed(names: Sequence[str]) -> Dict[str, Any]:
    """Return the generations of the jobs. One that can't be looked at does not hide the others."""
    backups: List[Dict[str, Any]] = []
    failures: List[Dict[str, Any]] = []
    for name in names:
        try:
            backups += _agent.ask("list", name)
        except CommandError as error:
            failures.append({"job": name, **failure(error)})
    backups.sort(key=lambda backup: str(backup["time"]), reverse=True)
    result = {"jobs": list(names), "backups": backups, "status": [each for name in names for each in standing(name)], "directories": directories(names)}
    if not failures:
        return result
    return {**result, "failed": True, "failures": failures, "msg": "; ".join(each["msg"] for each in failures), "exit_code": failures[0]["exit_code"]}


def standing(name: str) -> List[Dict[str, Any]]:
    """Return how a job stands: the agent fails where something is wrong, and says it all the same."""
    try:
        found = _agent.ask("status", name)
    except _agent.AgentError as error:
        found = error.answer
    return found if isinstance(found, list) else []


def directories(names: Sequence[str]) -> List[str]:
    """Return the directories with backups of this host in the repositories of the jobs that can be read."""
    repositories = set()
    for name in names:
        try:
            repositories.add(file.load(name).repository)
        except StillpointError:
            continue  # the agent has said what is wrong with it
    pattern = os.path.join(glob.escape(host_name()), "*", "")
    return sorted(found.rstrip("/") for each in repositories for found in glob.glob(os.path.join(glob.escape(each), pattern)))


def main() -> None:
    module = OWN.module()
    have_libraries("yaml")
    asked = module.params["job"]
    with door(module):
        result = listed([asked] if asked else job_names())
    if result.pop("failed", False):
        module.fail_json(**result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
