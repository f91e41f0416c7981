#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# The work is done by the action plugin of the same name: plugins/action/agent.py

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Put the agent on a host
description:
  - Builds the agent from this collection, one file that needs nothing but Python, and puts it on the host. It is the command
    with which backups are taken, listed, verified and restored there, by timers and by people, without a workstation.
  - The same version of the collection gives the same bytes wherever it is built, so a host that has them is left alone.
  - The agent is started once, to show its version, before it takes its place. One that does not start on the host never replaces
    one that does.
options:
  path:
    description: Where the agent lies. Its directory has to exist.
    type: path
    default: /usr/local/sbin/stillpoint
  interpreter:
    description: The Python of the host that runs the agent, 3.8 or newer, with PyYAML and, for databases, PyMySQL.
    type: path
    default: /usr/bin/python3
  state:
    description: V(absent) removes the agent, and nothing else.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows version, checksum, owner and mode, not the agent's contents.
  action:
    support: full
  async:
    support: none
seealso:
  - module: stillpoint.backup.backup_run
  - ref: stillpoint.backup.backup_client <ansible_collections.stillpoint.backup.backup_client_role>
    description: The role puts the agent on a host, with its jobs and timers.
"""

EXAMPLES = r"""
- name: Put the agent on the host
  stillpoint.backup.agent:

- name: Put it there for another Python than the distribution's
  stillpoint.backup.agent:
    interpreter: /usr/bin/python3.11

- name: Remove it
  stillpoint.backup.agent:
    state: absent
"""

RETURN = r"""
path:
  description: Where the agent lies.
  type: str
  returned: success
  sample: /usr/local/sbin/stillpoint
version:
  description: The version of the agent.
  type: str
  returned: success, O(state=present)
  sample: 0.1.0
checksum:
  description: SHA-1 of the agent's file.
  type: str
  returned: success, O(state=present)
  sample: 41e4f0e9d7b9a0c4bd2b7bd4d6ec0c1d4f0d0c2e
size:
  description: Its size in bytes.
  type: int
  returned: success, O(state=present)
  sample: 180224
"""
