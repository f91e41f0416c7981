# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's own programs that write a dump and load one, and how they log in: by a file that only they read."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Iterator, List, Sequence

from ..host.errors import StillpointError
from ..host.process import PATH, require, run
from ..host.processes import process_start
from ..host.run_directory import RUN_DIRECTORY, make_run_directory
from ..mysql import option_file as options
from ..mysql.connection import Login, client_options

_PREFIX = "login-"

# The most that any server and any client accept in one statement.
LARGEST_PACKET = 1 << 30

_PROGRAMS = {"mariadb": ("mariadb-dump", "mariadb"), "mysql": ("mysqldump", "mysql")}
_OLD_NAMES = {"mariadb-dump": "mysqldump", "mariadb": "mysql"}  # MariaDB before 10.4.6


@dataclass(frozen=True)
class Program:
    """A program of the server's distribution: its path, and its version as it words it."""

    path: str
    version: str

    @property
    def name(self) -> str:
        return os.path.basename(self.path)

    @property
    def has_history(self) -> bool:
        """Whether it can dump the old rows of system-versioned tables (MariaDB 10.11)."""
        return "mariadb" in self.name and tuple(int(part) for part in re.findall(r"\d+", self.version)) >= (10, 11)


def dumper(flavour: str) -> Program:
    """Return the program that dumps a server of this flavour.

    :raises StillpointError: it is not installed, or is the other flavour's
    """
    return _program(flavour, 0)


def loader(flavour: str) -> Program:
    """Return the client that loads a dump into a server of this flavour; errors as in `dumper`."""
    return _program(flavour, 1)


def _program(flavour: str, which: int) -> Program:
    wanted = "mariadb" if flavour == "mariadb" else "mysql"
    name = _PROGRAMS[wanted][which]
    path = shutil.which(name, path=PATH) or shutil.which(_OLD_NAMES.get(name, name), path=PATH)
    if path is None:
        require(name)
    said = run([str(path), "--version"], timeout=30).stdout.strip()
    if ("mariadb" in said.lower()) != (wanted == "mariadb"):
        raise StillpointError(
            "the program %s of this host is %s's and the server is %s's, whose accounts and columns it does not know: install the client of the server"
            % (path, "MariaDB" if wanted == "mysql" else "MySQL", "MySQL" if wanted == "mysql" else "MariaDB")
        )
    found = [match.group(1) for match in (re.search(word + r" ([\d.]+)", said) for word in ("from", "Distrib", "Ver")) if match]
    return Program(str(path), found[0] if found else "unknown")


@contextmanager
def option_file(login: Login) -> Iterator[str]:
    """Give the path of an option file that logs in as a Login does; only root can read it, and it is gone at the end."""
    clean()
    prefix = "%s%d-%d-" % (_PREFIX, os.getpid(), process_start(os.getpid()) or 0)
    directory = tempfile.mkdtemp(prefix=prefix, dir=make_run_directory())  # mode 0700
    try:
        yield options.write(os.path.join(directory, "client.cnf"), client_options(login))
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def clean() -> None:
    """Remove the option files of processes that were killed."""
    for name in os.listdir(RUN_DIRECTORY) if os.path.isdir(RUN_DIRECTORY) else ():
        match = re.fullmatch(_PREFIX + r"(\d+)-(\d+)-.*", name)
        if match and process_start(int(match.group(1))) != int(match.group(2)):
            shutil.rmtree(os.path.join(RUN_DIRECTORY, name), ignore_errors=True)


def dump_command(
    program: Program, flavour: str, options: str, databases: Sequence[str], *, coordinates: bool, history: bool = False, without: Sequence[str] = ()
) -> List[str]:
    """Return the command that writes a dump to its standard output.

    :param options: the option file
    :param coordinates: have the snapshot's own coordinates in comments, which needs no lock on MariaDB
    :param without: views to leave out, as DATABASE.VIEW
    :param history: of system-versioned tables, their old rows too
    """
    argv = [
        program.path,
        "--defaults-file=" + options,
        "--single-transaction",
        "--quick",
        "--routines",
        "--events",
        "--triggers",
        "--hex-blob",
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=%d" % LARGEST_PACKET,
        "--verbose",  # it says on stderr when its snapshot is taken
    ]
    if flavour == "mariadb":
        argv += ["--master-data=2", "--gtid"] if coordinates else []
        argv += ["--dump-history"] if history else []
    else:
        # GTIDs are in the manifest: in the dump they would keep it from being loaded into any server that has run before
        argv += ["--set-gtid-purged=OFF", "--no-tablespaces"]
    argv += ["--ignore-table=" + view for view in without]
    return [*argv, "--databases", "--", *databases]


def load_command(program: Program, options: str) -> List[str]:
    """Return the command that runs what it reads from its standard input, and ends at the first statement that fails."""
    return [
        program.path,
        "--defaults-file=" + options,
        "--batch",
        "--binary-mode",
        "--comments",  # those in routines and views are part of them
        "--default-character-set=utf8mb4",
        "--max-allowed-packet=%d" % LARGEST_PACKET,
    ]
