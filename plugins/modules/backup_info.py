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
  - Asks the host's agent which jobs there are and which generations each of them has.
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

- name: Insist that the newest one is a good one and not older than two days
  ansible.builtin.assert:
    that:
      - known.backups | length > 0
      - known.backups[0].state != 'bad'
      - (known.backups[0].time | regex_replace('\.\d+Z$', 'Z') | to_datetime('%Y-%m-%dT%H:%M:%SZ')).timestamp() > now().timestamp() - 2 * 86400
"""

RETURN = r"""
jobs:
  description: The names of the jobs.
  type: list
  elements: str
  returned: success
  sample: [etrial]
backups:
  description: The generations, newest first.
  type: list
  elements: dict
  returned: success
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
      description: V(good) where it is proven to start or has no database in it, V(unproven), or V(bad) where damage was found.
      type: str
      sample: good
"""

from typing import Any, Dict, List

from ansible_collections.stillpoint.backup.plugins.module_utils import _agent
from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core import job
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door

OWN = ArgumentSpec({"job": {"type": "str"}})


def main() -> None:
    module = OWN.module()
    asked = module.params["job"]
    with door(module):
        jobs = [asked] if asked else job.names()
        backups: List[Dict[str, Any]] = _agent.ask("list", *([asked] if asked else [])) if jobs else []
    module.exit_json(changed=False, jobs=jobs, backups=backups)


if __name__ == "__main__":
    main()
