#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: unit_files
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Have files and systemd units on a host as listed, and none of the same mark besides
description:
  - Writes files from templates, removes those that carry the same mark and are not listed, has systemd read its units once if any of them changed,
    and enables, starts and restarts units, all in one task.
  - Role P(stillpoint.backup.backup_client#role) puts jobs, services and timers on a host with it.
  - What has to be done is found by looking at the host. A deployment that broke off anywhere is made up for by the next one.
  - Each file is replaced as a whole, belongs to root, and is on the disk before the next one is written.
options:
  mark:
    description: Text that follows C(# ) at the begin of one of the first five lines of each file. A file without it is not removed.
    type: str
    required: true
  directory:
    description: The directory of systemd's units.
    type: path
    default: /etc/systemd/system
  directories:
    description: Further directories of the files. They are made with mode C(0700) where they are missing.
    type: list
    elements: path
    default: []
  searched:
    description: Patterns of paths. Files among them that carry the O(mark) and are not among the O(files) are removed, timers and services stopped before.
    type: list
    elements: str
    default: []
  files:
    description:
      - A list of files, each with its C(path), and with C(src), the name of a template that begins with the O(mark). The list is kept out of all logs.
      - C(vars) are variables for the template. C(mode) is V(0644) where it is not given.
      - C(secret) keeps what the file holds out of the diff.
      - C(read_only) is a list of paths. The file is written only if one of them leads below a directory that systemd makes read-only for a service with
        C(ProtectSystem=full).
    type: raw
  units:
    description: Units that are enabled, and started unless said otherwise. Those that systemd knows by a link and that are not listed are disabled and stopped.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The unit's full name.
        type: str
        required: true
      state:
        description: V(enabled) does not start it.
        type: str
        choices: [started, enabled]
        default: started
      reads:
        description: Files that the unit reads only when it starts. It is restarted when one of them has changed since.
        type: list
        elements: path
        default: []
  links:
    description: Patterns of the links that systemd makes for enabled units. Those of units that are not among O(units) are disabled and stopped.
    type: list
    elements: str
    default: []
  state:
    description: >-
      V(absent) removes all files that are found by O(searched) and O(mark), after their units were stopped and disabled; V(stopped) stops and disables
      the units and removes nothing. Both take no O(files) and no O(units).
    type: str
    choices: [present, stopped, absent]
    default: present
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows files that are not C(secret) line by line, of the others that they change.
  action:
    support: full
    details: The templates are filled in on the controller.
  async:
    support: none
seealso:
  - ref: stillpoint.backup.backup_client <ansible_collections.stillpoint.backup.backup_client_role>
    description: The role describes its files with the filter P(stillpoint.backup.client_files#filter).
"""

EXAMPLES = r"""
- name: Have a timer of our own, and none of those that we had before
  stillpoint.backup.unit_files:
    mark: Written by our playbook
    searched: [/etc/systemd/system/ours-*.timer]
    files:
      - path: /etc/systemd/system/ours-nightly.timer
        src: nightly.timer.j2
    units:
      - name: ours-nightly.timer
"""

RETURN = r"""
actions:
  description: What was done, in check mode what would be.
  type: list
  elements: str
  returned: success
  sample: [write /etc/stillpoint/jobs/etrial.yml, enable stillpoint@etrial.timer, start stillpoint@etrial.timer]
"""

import json

from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._module import door
from ansible_collections.stillpoint.backup.plugins.module_utils._unit_files import Wanted, ensure, file, unit

OWN = ArgumentSpec(
    {
        "mark": {"type": "str", "required": True},
        "directory": {"type": "path", "default": "/etc/systemd/system"},
        "directories": {"type": "list", "elements": "path", "default": []},
        "searched": {"type": "list", "elements": "str", "default": []},
        "files": {"type": "raw", "no_log": True},
        "units": {
            "type": "list",
            "elements": "dict",
            "default": [],
            "options": {
                "name": {"type": "str", "required": True},
                "state": {"type": "str", "choices": ["started", "enabled"], "default": "started"},
                "reads": {"type": "list", "elements": "path", "default": []},
            },
        },
        "links": {"type": "list", "elements": "str", "default": []},
        "state": {"type": "str", "choices": ["present", "stopped", "absent"], "default": "present"},
    }
)


def main() -> None:
    module = OWN.module()
    params = module.params
    with door(module):
        wanted = Wanted(
            params["mark"],
            params["directory"],
            *(tuple(params[name]) for name in ("directories", "searched", "links")),
            tuple(file(each) for each in json.loads(params["files"] or "[]")),
            tuple(unit(each) for each in params["units"]),
        )
        changes = ensure(wanted, check=module.check_mode, remove=params["state"] != "stopped")
    module.exit_json(changed=bool(changes.actions), actions=changes.actions, diff=changes.diff)


if __name__ == "__main__":
    main()
