#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

# The action plugin of the same name brings the sources: plugins/action/agent.py

from __future__ import annotations

DOCUMENTATION = r"""
module: agent
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Put the agent on a host
description:
  - Builds the agent from this collection, one file that needs nothing but Python, and puts it on the host. It is the command
    with which backups are taken, listed, verified and restored there, by timers and by people, without a workstation.
  - The file holds the sources, the same for each host, and bytecode that is made of them on the host, so that the agent starts fast.
    A host is left alone where both are as they are wanted. After an upgrade of the host's Python the agent runs from its sources,
    until it is deployed the next time.
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
  _checksum:
    description: Given by the action plugin, the SHA-256 of the agent's sources.
    type: str
  _sources:
    description: Given by the action plugin, where the sources lie on the host once they are needed.
    type: path
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.attributes.action
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows version, the checksum of the sources, the Python of the bytecode, owner and mode, not the agent's contents.
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
  description: SHA-256 of the sources that the agent was made of.
  type: str
  returned: success, O(state=present)
  sample: a6de2744dc42a262e12f184e032f135c2ee03d46cb1f4511cac709ae9b2e9d81
bytecode:
  description: The Python whose bytecode the agent holds.
  type: str
  returned: success, O(state=present)
  sample: cpython-311-a70d0d0a
"""

from typing import Any, Dict, List, Optional

from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec
from ansible_collections.stillpoint.backup.plugins.module_utils._core.agent import installation
from ansible_collections.stillpoint.backup.plugins.module_utils._core.agent.installation import Agent
from ansible_collections.stillpoint.backup.plugins.module_utils._module import difference, door

OWN = ArgumentSpec(
    {
        "path": {"type": "path", "default": "/usr/local/sbin/stillpoint"},
        "interpreter": {"type": "path", "default": "/usr/bin/python3"},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        "_checksum": {"type": "str"},  # of the sources, from the action plugin, as is
        "_sources": {"type": "path"},  # where they lie on the host, once they are needed
    }
)


def perform(options: Dict[str, Any], check_mode: bool) -> Dict[str, Any]:
    """Have the agent as it is asked for, or say that its sources are needed for that; return the module's result."""
    path = options["path"]
    before = installation.look(path)
    after = installation.wanted(options["_checksum"], options["interpreter"]) if options["state"] == "present" else None
    if after != before and not check_mode:
        if after is None:
            installation.remove(path)
        elif before is not None and before.origin == after.origin:
            installation.restore_access(path)
        elif options["_sources"] is None:
            return {"sources_needed": True}
        else:
            installation.install(options["_sources"], path, options["interpreter"], after)
    made = {"version": after.origin.version, "checksum": after.origin.sources, "bytecode": after.origin.bytecode} if after and after.origin else {}
    return {"changed": after != before, "path": path, "diff": difference(path, lines(before), lines(after)), **made}


def lines(agent: Optional[Agent]) -> List[str]:
    return agent.lines() if agent else []


def main() -> None:
    module = OWN.module()
    with door(module):
        result = perform(module.params, module.check_mode)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
