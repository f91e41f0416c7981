# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

from ansible.errors import AnsibleFilterError
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import UsageError
from ansible_collections.stillpoint.backup.plugins.module_utils._core.job import file

DOCUMENTATION = r"""
name: jobs
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Backup jobs, checked and as they are written to a host
description:
  - Checks jobs with the code that the agent reads them with, so that a wrong one is refused before anything is changed anywhere.
  - A job that says nothing about how to log in to the server gets an option file to log in with.
options:
  _input:
    description: Jobs, as in the variable C(backup_client_jobs) of the role P(stillpoint.backup.backup_client#role).
    type: list
    elements: dict
    required: true
  config_file:
    description: The option file for jobs with a C(mysql) section that names neither a C(config_file) nor a C(login_user).
    type: path
"""

EXAMPLES = r"""
- name: Refuse wrong jobs
  ansible.builtin.assert:
    that: "[{'name': 'etc', 'files': ['/etc'], 'repository': '/backups'}] | stillpoint.backup.jobs | length == 1"
"""

RETURN = r"""
_value:
  description: The jobs.
  type: list
  elements: dict
"""

VARIABLE = "backup_client_jobs"


def jobs(value: Sequence[Mapping[str, Any]], config_file: Optional[str] = None) -> List[Dict[str, Any]]:
    """Return the jobs, those that log in by default with an option file to do it."""
    if not isinstance(value, list):
        raise AnsibleFilterError("%s is not a list of jobs" % VARIABLE)
    known: Dict[str, int] = {}
    result = []
    for number, each in enumerate(plain(value)):
        where = "%s[%d]" % (VARIABLE, number)
        try:
            name = file.parse(each, where).name
        except UsageError as error:
            raise AnsibleFilterError(str(error)) from error
        if name in known:
            raise AnsibleFilterError("%s and %s[%d] have the same name, %s" % (where, VARIABLE, known[name], name))
        known[name] = number
        result.append(with_login(dict(each), config_file))
    return result


def plain(value: Any) -> Any:
    """Return a value of a variable without what Ansible knows of it besides: text out of the vault would be written as it is there."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return json.loads(json.dumps(value, default=str))


def with_login(each: Dict[str, Any], config_file: Optional[str]) -> Dict[str, Any]:
    """Return a job with an option file, where it needs one and names none."""
    mysql = each.get("mysql")
    if config_file is None or mysql is None or "config_file" in mysql or "login_user" in mysql:
        return each
    return {**each, "mysql": {**mysql, "config_file": config_file}}


class FilterModule:
    def filters(self) -> Dict[str, Callable[..., Any]]:
        return {"jobs": jobs}
