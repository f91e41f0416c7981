# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # How to log in to the server. The same names as in every MySQL module of Ansible; the same family in code is
    # plugins/module_utils/_argspec.py:connection().
    DOCUMENTATION = r"""
options:
  login_user:
    description:
      - The database user to log in as.
      - With no connection option at all, the login is V(root) over the server's local socket, which needs no password
        where the server maps the operating system's root to it (C(unix_socket), C(auth_socket)).
    type: str
  login_password:
    description:
      - The password of O(login_user). Better kept in a O(config_file) of mode C(0600).
    type: str
  login_host:
    description:
      - The host of the server. The server's files have to lie on the host that the module runs on, so this is for a
        server that listens on an address only.
    type: str
  login_port:
    description: The TCP port of the server, with O(login_host).
    type: int
  login_unix_socket:
    description: Path of the server's local socket. Default is where the distribution puts it.
    type: path
  config_file:
    description:
      - An option file as the server's own client programs read it, of which the groups C([client]), C([client-server]) and
        C([client-mariadb]) give user, password, socket, host, port and TLS files. Keep its mode at C(0600).
      - Options given to the module win over those in the file.
    type: path
  ca_cert:
    description: Certificate of the authority that the server's certificate has to be signed by. Makes the connection use TLS.
    type: path
    aliases: [ssl_ca]
  client_cert:
    description: The client's certificate, where the server asks for one.
    type: path
    aliases: [ssl_cert]
  client_key:
    description: The key that belongs to O(client_cert).
    type: path
    aliases: [ssl_key]
  check_hostname:
    description: Whether the name in the server's certificate has to be O(login_host).
    type: bool
  connect_timeout:
    description: Seconds to wait for the server to answer.
    type: int
    default: 10
requirements:
  - PyMySQL on the host, for the Python that Ansible uses there (package C(python3-pymysql) on Debian, C(python3-PyMySQL) on the Red Hat family)
"""
