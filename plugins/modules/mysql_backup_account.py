#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: mysql_backup_account
version_added: 0.1.0
author: The Stillpoint contributors (@stillpoint)
short_description: Have a database account for backups, with the least privileges
description:
  - Makes an account on the host's MySQL or MariaDB server that holds exactly the privileges that a backup needs with this
    flavour and version of the server, and an option file of mode C(0600) that logs in as it.
  - The password is random, is made on the host, and is kept in the option file alone. It is in no argument, output or log,
    and is replaced only when the option file does not log in.
  - Privileges that the account holds beyond those are revoked.
  - The account belongs to this one server. It is kept out of the binary log (C(sql_log_bin)), so that every server of a
    replication topology has its own account, its own password and its own option file, and a replica gets no transaction
    that its source does not have.
options:
  name:
    description:
      - The account's user name. Default is V(stillpoint).
      - With O(state=absent) it is the one that an O(option_file) of this module logs in as, on the server that it names unless the connection options name one.
    type: str
  host:
    description: The account's host. Backups run on the server's own host.
    type: str
    default: localhost
  option_file:
    description:
      - The option file that logs in as the account.
      - One that is there already, that this module has not written and that does not log in as the account, is refused.
    type: path
    default: /etc/stillpoint/my.cnf
  kill:
    description: Whether the account may end other users' statements, as jobs with V(kill) as their C(long_query_action) need it.
    type: bool
    default: false
  dump:
    description: Whether the account may read every table, as jobs with V(dump) as their C(method) do.
    type: bool
    default: false
  stop_replica:
    description: Whether the account may stop and start a replica's SQL threads, as jobs with C(stop_replica) need it.
    type: bool
    default: false
  desync:
    description: Whether the account may desync a Galera node, as jobs with C(desync) need it. On MariaDB that takes C(SUPER).
    type: bool
    default: false
  archive:
    description: Whether the account may have binary logs sent to it, as jobs that archive them need it.
    type: bool
    default: false
  state:
    description: V(absent) drops the account, and removes the option file if this module has written it.
    type: str
    choices: [present, absent]
    default: present
extends_documentation_fragment:
  - stillpoint.backup.attributes
  - stillpoint.backup.mysql
  - stillpoint.backup.failures
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details: Shows the account's privileges and the option file's mode, and nothing secret.
notes:
  - The connection options are those of an administrator, who has to hold all that is granted, C(CREATE USER), and where the
    server writes a binary log the privilege to leave it out (C(SUPER), C(BINLOG ADMIN), C(SYSTEM_VARIABLES_ADMIN) or
    C(SESSION_VARIABLES_ADMIN)).
  - A server with C(super_read_only) refuses account management to everybody.
seealso:
  - module: stillpoint.backup.mysql_quiesce_snapshot
  - ref: stillpoint.backup.backup_client <ansible_collections.stillpoint.backup.backup_client_role>
    description: The role makes the account for its jobs.
"""

EXAMPLES = r"""
- name: Have an account for backups, made as root over the local socket
  stillpoint.backup.mysql_backup_account:
  register: account

- name: Say what it may do
  ansible.builtin.debug:
    msg: "{{ account.privileges | join(', ') }}"

- name: Have one that may also end statements that a lock would wait for
  stillpoint.backup.mysql_backup_account:
    kill: true

- name: Take a quiesced snapshot with it
  stillpoint.backup.mysql_quiesce_snapshot:
    config_file: "{{ account.option_file }}"

- name: Drop the account and remove its option file
  stillpoint.backup.mysql_backup_account:
    state: absent
"""

RETURN = r"""
name:
  description: The account's user name.
  type: str
  returned: success
  sample: stillpoint
host:
  description: The account's host.
  type: str
  returned: success
  sample: localhost
option_file:
  description: The option file that logs in as it.
  type: str
  returned: success
  sample: /etc/stillpoint/my.cnf
privileges:
  description: What the account holds, on all databases unless said otherwise.
  type: list
  elements: str
  returned: success
  sample: [RELOAD, PROCESS, BINLOG MONITOR, SLAVE MONITOR]
actions:
  description: What was done, in check mode what would be.
  type: list
  elements: str
  returned: success
  sample: ["create account 'stillpoint'@'localhost'", "grant RELOAD on *.*", "write option file /etc/stillpoint/my.cnf"]
"""

from dataclasses import replace

from ansible_collections.stillpoint.backup.plugins.module_utils._argspec import ArgumentSpec, connection, request
from ansible_collections.stillpoint.backup.plugins.module_utils._core.mysql import account
from ansible_collections.stillpoint.backup.plugins.module_utils._core.mysql.account import Account
from ansible_collections.stillpoint.backup.plugins.module_utils._core.mysql.connection import Login, Session
from ansible_collections.stillpoint.backup.plugins.module_utils._core.mysql.privileges import Extras
from ansible_collections.stillpoint.backup.plugins.module_utils._module import difference, door, have_libraries

OWN = ArgumentSpec(
    {
        "name": {"type": "str"},
        "host": {"type": "str", "default": "localhost"},
        "option_file": {"type": "path", "default": "/etc/stillpoint/my.cnf"},
        "kill": {"type": "bool", "default": False},
        "dump": {"type": "bool", "default": False},
        "stop_replica": {"type": "bool", "default": False},
        "desync": {"type": "bool", "default": False},
        "archive": {"type": "bool", "default": False},
        "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
    }
)


def main() -> None:
    module = OWN.merge(connection()).module()
    have_libraries("pymysql")
    params = module.params
    extras = Extras(**{name: params[name] for name in ("kill", "stop_replica", "desync", "dump", "archive")})
    login = request(Login, params)
    with door(module):
        recorded = {} if params["state"] == "present" else account.recorded(params["option_file"])
        if not (login.login_unix_socket or login.login_host or login.login_port):
            login = replace(login, login_unix_socket=recorded.get("socket"), login_port=int(recorded.get("port") or 0) or None)
        wanted = Account(params["name"] or recorded.get("user") or "stillpoint", params["host"], params["option_file"], extras, params["state"] == "present")
        with Session(login) as session:
            ensured = account.ensure(session, wanted, check=module.check_mode)
    module.exit_json(
        changed=ensured.changed,
        name=wanted.user,
        host=wanted.host,
        option_file=wanted.option_file,
        privileges=list(ensured.privileges),
        actions=list(ensured.actions),
        diff=difference("account", list(ensured.before), list(ensured.after)),
    )


if __name__ == "__main__":
    main()
