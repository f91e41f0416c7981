# SPDX-License-Identifier: GPL-3.0-or-later
"""What another server must be told to open the files of this one: read while it runs, kept in the manifest."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Tuple

from ..host.errors import StillpointError
from ..host.process import PATH
from . import server as servers
from .connection import Session
from .server import Server, Version

# Variables that decide how files are read, or what a statement means that is executed again. Each is an option of the same name.
_CARRIED = (
    "basedir",
    "plugin_dir",
    "character_sets_dir",
    "lc_messages_dir",
    "lower_case_table_names",
    "character_set_server",
    "collation_server",
    "default_storage_engine",
    "explicit_defaults_for_timestamp",
    "sql_mode",
    "max_allowed_packet",
    "log_bin_trust_function_creators",
    "gtid_mode",
    "enforce_gtid_consistency",
    "ft_min_word_len",
    "ft_max_word_len",
    "ft_stopword_file",
    "aria_block_size",
    "aria_log_file_size",
    "innodb_page_size",
    "innodb_strict_mode",
    "innodb_default_row_format",
    "innodb_file_per_table",
    "innodb_data_file_path",
    "innodb_undo_tablespaces",
    "innodb_redo_log_capacity",
    "innodb_log_file_size",
    "innodb_log_files_in_group",
    "innodb_checksum_algorithm",
    "innodb_doublewrite_dir",
    "innodb_compression_algorithm",
    "innodb_encrypt_log",
    "innodb_encrypt_tables",
    "encrypt_binlog",
    "file_key_management_filename",
    "file_key_management_filekey",
    "file_key_management_encryption_algorithm",
    "keyring_file_data",
)

# variable of each directory that may lie outside the data directory
PLACED = ("innodb_data_home_dir", "innodb_log_group_home_dir", "innodb_undo_directory", "aria_log_dir_path", "rocksdb_datadir", "rocksdb_wal_dir")

# Engines that come as plugins and keep their data in the data directory; others (SPIDER, CONNECT, FEDERATED, S3) reach out to other servers.
_ENGINES = ("ARCHIVE", "BLACKHOLE", "MROONGA", "OQGRAPH", "ROCKSDB", "TOKUDB")
_KEYS = ("ENCRYPTION", "KEYRING")
# What a table's definition or a statement about accounts may need. Left out: AUDIT (writes elsewhere), PASSWORD VALIDATION (refuses
# what production accepted), and DAEMON but for the providers of page compression (HandlerSocket listens).
_TYPES = (*_KEYS, "AUTHENTICATION", "DATA TYPE", "FTPARSER", "FUNCTION")
_PROVIDER = "provider_"
_ASK_OTHERS = re.compile("ldap|kerberos|fido|webauthn")  # ways to log in that look for another host as soon as they are loaded

_PROGRAMS = {"mariadb": ("mariadbd", "mysqld"), "mysql": ("mysqld",), "percona": ("mysqld",)}


@dataclass(frozen=True)
class Settings:
    """A server's own description of its files.

    :ivar program: its binary; that of the running process where the file has been replaced since it started
    :ivar paths: ``(role, path)`` of each directory that its data needs, the data directory first, symlinks resolved
    :ivar log_bin: basename of its binary logs with their directory; "" where it writes none
    :ivar variables: those that another server has to be given, by name
    :ivar plugins: ``name=library`` of those that its tables and accounts may need
    """

    flavour: str
    version: Version
    version_text: str
    program: str
    paths: Tuple[Tuple[str, str], ...]
    log_bin: str
    log_bin_index: str
    variables: Tuple[Tuple[str, str], ...]
    plugins: Tuple[str, ...]

    @property
    def datadir(self) -> str:
        return self.paths[0][1]

    @property
    def is_mariadb(self) -> bool:
        return self.flavour == "mariadb"

    @property
    def redo_bytes(self) -> int:
        """Bytes of the redo log."""
        known = dict(self.variables)
        one, files = known.get("innodb_redo_log_capacity") or known.get("innodb_log_file_size") or "0", known.get("innodb_log_files_in_group", "1")
        return int(one) * int(files) if one.isdigit() and files.isdigit() else 0

    @property
    def asks_for_keys(self) -> bool:
        """Whether its keys may lie with another host: a plugin of MariaDB that is none of files, or a component of MySQL's, which is not seen here."""
        return not self.is_mariadb or any("key" in plugin.lower() and "file_key" not in plugin for plugin in self.plugins)

    def plugins_here(self) -> List[str]:
        """Return the plugins whose library this host has. Those with keys are not left out: without them, nothing is known of the data."""
        directory = dict(self.variables).get("plugin_dir", "")
        libraries = {plugin: os.path.join(directory, plugin.partition("=")[2]) for plugin in self.plugins}
        return [plugin for plugin, library in libraries.items() if "key" in plugin.lower() or not os.path.isdir(directory) or os.path.exists(library)]

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the manifest keeps it; `from_dict` reads it."""
        return {
            "flavour": self.flavour,
            "version": self.version_text,
            "program": self.program,
            "paths": [{"role": role, "path": path} for role, path in self.paths],
            "log_bin": self.log_bin,
            "log_bin_index": self.log_bin_index,
            "variables": dict(self.variables),
            "plugins": list(self.plugins),
        }

    def find_program(self) -> str:
        """Return the binary to start: the one that was read, else the one that this host has of the same flavour.

        :raises StillpointError: there is none
        """
        if os.path.exists(self.program):
            return self.program
        for name in _PROGRAMS.get(self.flavour, ()):
            found = shutil.which(name, path=PATH + ":/usr/libexec")
            if found:
                return found
        raise StillpointError("no server program of %s is installed on this host: install %s" % (self.flavour, self.version_text))


def from_dict(facts: Mapping[str, Any]) -> Settings:
    """Return the Settings that `Settings.as_dict` described.

    :raises StillpointError: a fact is missing
    """
    try:
        flavour, version = servers.flavour_and_version(str(facts["version"]), str(facts["flavour"]))
        program = str(facts["program"])
        return Settings(
            flavour=flavour,
            version=version,
            version_text=str(facts["version"]),
            program="" if program.startswith("/proc/") else program,  # that process is another one by now
            paths=tuple((str(path["role"]), str(path["path"])) for path in facts["paths"]),
            log_bin=str(facts["log_bin"]),
            log_bin_index=str(facts["log_bin_index"]),
            variables=tuple((str(name), str(value)) for name, value in facts["variables"].items()),
            plugins=tuple(str(plugin) for plugin in facts["plugins"]),
        )
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise StillpointError("the manifest does not say how the server was set up: %s of its settings is missing or wrong" % error) from error


def read(session: Session, server: Server) -> Settings:
    """Return the Settings of the server behind a session.

    :raises StillpointError: its process can't be found
    """
    values = {row["Variable_name"].lower(): str(row["Value"]) for row in session.rows("SHOW GLOBAL VARIABLES")}
    names = [*_CARRIED, *PLACED]
    if "innodb_redo_log_capacity" in values:
        names = [name for name in names if not name.startswith("innodb_log_file")]  # what came before it, and only warns
    return Settings(
        flavour=server.flavour,
        version=server.version,
        version_text=server.version_text,
        program=_program(servers.process_id(values, server.datadir)),
        paths=tuple((part.role, part.path) for part in server.paths),
        log_bin=server.log_bin_basename or "" if server.log_bin else "",
        log_bin_index=values.get("log_bin_index", "") if server.log_bin else "",
        variables=tuple((name, values[name]) for name in names if values.get(name, "") not in ("", "(built-in)") and not _is_secret(name, values[name])),
        plugins=tuple(_plugins(session)),
    )


def _is_secret(name: str, value: str) -> bool:
    """Tell whether a variable is the key to the keys itself, and not the file that has it."""
    return name == "file_key_management_filekey" and not value.startswith("FILE:")


def _program(pid: int) -> str:
    link = "/proc/%d/exe" % pid
    path = os.readlink(link)
    return link if path.endswith(" (deleted)") else path


def _plugins(session: Session) -> List[str]:
    return ["%s=%s" % (row["Name"], row["Library"]) for row in session.rows("SHOW PLUGINS") if _needed(row)]


def _needed(row: Mapping[str, Any]) -> bool:
    """Tell whether another server needs a plugin of ``SHOW PLUGINS``, and can have it: it neither listens, nor calls, nor writes elsewhere."""
    name, kind = str(row["Name"]), str(row["Type"])
    if not row["Library"] or row["Status"] != "ACTIVE" or _ASK_OTHERS.search(name.lower()):
        return False
    if kind == "STORAGE ENGINE":
        return name.upper() in _ENGINES
    return kind in _TYPES or kind == "DAEMON" and name.lower().startswith(_PROVIDER)
