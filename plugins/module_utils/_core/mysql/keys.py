# SPDX-License-Identifier: GPL-3.0-or-later
"""The keys that a server encrypts its data with: where they lie, and what can't be read without them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Callable, Container, Dict, Iterator, List, Mapping, Optional, Tuple

from .connection import ServerError, Session
from .outside import decoded

# variable that names a file of keys, or a directory; "FILE:" before its value is MariaDB's way to say that it is one
_FILES = {
    "file_key_management": ("file_key_management_filename", "file_key_management_filekey"),
    "keyring_file": ("keyring_file_data",),
    "keyring_encrypted_file": ("keyring_encrypted_file_data",),
    "keyring_aws": ("keyring_aws_conf_file", "keyring_aws_data_file"),
    "keyring_okv": ("keyring_okv_conf_dir",),
    "keyring_vault": ("keyring_vault_config",),
}
# variable that says where another host keeps them
_SERVICES = {
    "hashicorp_key_management": ("HashiCorp Vault", "hashicorp_key_management_vault_url"),
    "aws_key_management": ("the key service of AWS", "aws_key_management_master_key_id"),
    "keyring_aws": ("the key service of AWS", "keyring_aws_cmk_id"),
    "keyring_hashicorp": ("HashiCorp Vault", "keyring_hashicorp_server_url"),
    "keyring_okv": ("a KMIP server", "keyring_okv_conf_dir"),
    "keyring_vault": ("HashiCorp Vault", "keyring_vault_config"),
}
_SETTINGS = {
    "innodb_encrypt_log": "the redo log",
    "innodb_redo_log_encrypt": "the redo log",
    "innodb_undo_log_encrypt": "the undo tablespaces",
    "aria_encrypt_tables": "Aria's tables",
    "encrypt_binlog": "the binary logs",
    "binlog_encryption": "the binary logs",
}
_TABLES = {
    "mariadb": "SELECT NAME FROM information_schema.INNODB_TABLESPACES_ENCRYPTION WHERE ENCRYPTION_SCHEME = 1 AND NAME IS NOT NULL ORDER BY 1",
    "mysql": "SELECT NAME FROM information_schema.INNODB_TABLESPACES WHERE ENCRYPTION = 'Y' ORDER BY 1",
}
_COMPONENT = "component_keyring_"
_MANIFEST = "mysqld.my"  # MySQL's, of the components that it loads first; beside its program, or in the data directory


@dataclass(frozen=True)
class Keys:
    """The keys of a server that has something encrypted.

    :ivar plugin: what reads them
    :ivar files: where they lie on this host, symlinks resolved
    :ivar service: who keeps them, where that is another host; ""
    :ivar needed_by: what is encrypted, in words
    """

    plugin: str
    files: Tuple[str, ...]
    service: str
    needed_by: Tuple[str, ...]

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the manifest keeps it, under ``server``."""
        return {**asdict(self), "files": list(self.files), "needed_by": list(self.needed_by)}

    def warnings(self, held: Container[str]) -> List[str]:
        """Return what somebody should know of keys that the backup does not hold.

        :param held: the key files that it does
        """
        what = " and ".join(self.needed_by)
        found = [
            "%s can't be read without the key file %s, which the backup does not hold: keep a copy of it elsewhere" % (what, path)
            for path in self.files
            if path not in held
        ]
        if self.service:
            found.append("%s can't be read without the keys that %s holds, which no backup does: see that they are kept there" % (what, self.service))
        if not self.files and not self.service:
            found.append("%s can't be read without the keys of %s, which the backup may not hold: keep a copy of them elsewhere" % (what, self.plugin))
        return found


def missing_here(summary: Mapping[str, Any], brought: Callable[[str], bool]) -> Iterator[str]:
    """Give a sentence for each key file that a backup needs and this host lacks.

    :param summary: of its manifest
    :param brought: tells whether a path is restored with it
    """
    keys = (summary.get("server") or {}).get("keys") or {}
    for path in keys.get("files") or ():
        if not os.path.exists(path) and not brought(str(path)):
            yield "%s can't be read without the key file %s, which this host lacks: put it there first, or have the server's configuration name another" % (
                " and ".join(keys.get("needed_by") or ("it",)),
                path,
            )


def read(session: Session, variables: Mapping[str, str], flavour: str, datadir: str, program: str) -> Optional[Keys]:
    """Return the keys that the server's data needs; None where nothing is encrypted, or no plugin has keys.

    :param program: the server's binary, beside which MySQL looks for its components
    """
    plugins = [
        str(row["Name"]).lower() for row in session.rows("SHOW PLUGINS") if row["Status"] == "ACTIVE" and row["Type"] in ("ENCRYPTION", "KEYRING")
    ]
    component = _component(variables, datadir, program) if flavour != "mariadb" else None
    if not plugins and component is None:
        return None
    needed_by = list(_encrypted(session, variables, flavour))
    if not needed_by:
        return None
    if component is not None:
        return Keys(*component, tuple(needed_by))
    plugin = plugins[0]
    files = [_path(variables.get(name, ""), datadir) for name in _FILES.get(plugin, ())]
    name, variable = _SERVICES.get(plugin, ("", ""))
    service = "%s (%s)" % (name, variables[variable]) if variables.get(variable) else name
    return Keys(plugin, tuple(path for path in files if path), service, tuple(needed_by))


def _path(value: str, datadir: str) -> str:
    """Return the path that the value of a variable names; "" for none, and for a secret that is given itself."""
    value = value[len("FILE:") :] if value.startswith("FILE:") else value if "/" in value or "." in value else ""
    return os.path.realpath(os.path.join(datadir, value)) if value else ""


def _encrypted(session: Session, variables: Mapping[str, str], flavour: str) -> Iterator[str]:
    try:
        rows = session.rows(_TABLES["mariadb" if flavour == "mariadb" else "mysql"])
    except ServerError as error:
        if error.connection_lost:
            raise
        rows = []  # a version that has no such list, or no privilege, which the plan names
    names = [decoded(str(row["NAME"])).replace("/", ".") for row in rows]
    if names:
        yield names[0] + (" and %d more" % (len(names) - 1) if len(names) > 1 else "")
    yield from dict.fromkeys(what for name, what in _SETTINGS.items() if variables.get(name) == "ON")


def _component(variables: Mapping[str, str], datadir: str, program: str) -> Optional[Tuple[str, Tuple[str, ...], str]]:
    """Return name, files and service of MySQL's keyring component; None where none is loaded."""
    manifests = [_json(os.path.join(directory, _MANIFEST)) for directory in (os.path.dirname(program), datadir)]
    loaded = " ".join(str(each.get("components", "")) for each in manifests)
    if _COMPONENT not in loaded:
        return None
    name = _COMPONENT + loaded.partition(_COMPONENT)[2].split(",")[0].split()[0].rstrip('"')
    asked = _json(os.path.join(variables.get("plugin_dir", ""), name + ".cnf"))
    if asked.get("read_local_config"):
        asked = _json(os.path.join(datadir, name + ".cnf"))
    path = str(asked.get("path") or asked.get("data_file") or "")
    service = str(asked.get("vault_url") or asked.get("server_addr") or "")
    return name, (os.path.realpath(path),) if path else (), service


def _json(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            found = json.load(file)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
