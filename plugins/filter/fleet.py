# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, Callable, Dict, List, Mapping

from ansible.errors import AnsibleFilterError
from ansible_collections.stillpoint.backup.plugins.module_utils._core.agent import show

DOCUMENTATION = r"""
name: fleet
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: How the backups of many hosts stand
description:
  - Makes a table of what M(stillpoint.backup.backup_info) has returned on each of many hosts, one line for each job, with the newest backup that is not bad.
options:
  _input:
    description: By the name of each host, what the module returned there, or what Ansible did of a host that failed or could not be reached.
    type: dict
    required: true
seealso:
  - module: stillpoint.backup.backup_info
"""

EXAMPLES = r"""
- name: Show how the backups of these hosts stand
  ansible.builtin.debug:
    msg: "{{ {inventory_hostname: {'jobs': [], 'backups': []}} | stillpoint.backup.fleet }}"
"""

RETURN = r"""
_value:
  description: The lines of the table in C(table), and in C(wrong) a sentence for each host or job that lacks a usable backup, or whose newest is bad.
  type: dict
"""


def fleet(value: Mapping[str, Any]) -> Dict[str, List[str]]:
    """Return the lines of a table of all hosts, and what is wrong."""
    if not isinstance(value, Mapping):
        raise AnsibleFilterError("fleet needs what each host returned, by its name")
    lines, wrong = show.fleet(value, datetime.now(timezone.utc))
    return {"table": lines, "wrong": wrong}


class FilterModule:
    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"fleet": fleet}
