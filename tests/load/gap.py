# SPDX-License-Identifier: GPL-3.0-or-later
"""Recorded coordinates against the position that InnoDB remembers: what lies between must not be transactional.

InnoDB remembers the position of its own last commit. The last events before the recorded position can be inserts into
MyISAM or Aria tables: they are in the tables, but not InnoDB's to remember.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass

TRANSACTIONAL = re.compile(r"^#.*\t(GTID \S+.* trans\b.*|Xid = .*)$", re.MULTILINE)


@dataclass(frozen=True)
class Position:
    file: str
    offset: int

    @classmethod
    def parse(cls, text: str) -> Position:
        """Return the position that FILE:OFFSET says."""
        file, _, offset = text.rpartition(":")
        return cls(file, int(offset))

    def __str__(self) -> str:
        return f"{self.file}:{self.offset}"


def unexplained(stood: Position, recorded: Position, binlogs: str) -> list[str]:
    """Return a sentence if InnoDB, which `stood` at one position, lacks what was transactional before `recorded`."""
    if stood == recorded:
        return []
    if not binlogs or (stood.file, stood.offset) > (recorded.file, recorded.offset):
        return [f"InnoDB recovered to {stood}, recorded was {recorded}"]
    found = TRANSACTIONAL.findall(_events(stood, recorded, binlogs))
    return [f"InnoDB recovered to {stood}, and before the recorded {recorded} was transactional: {found[0]}"] if found else []


def _events(since: Position, until: Position, binlogs: str) -> str:
    """Return the text of the events between two positions, which may lie in different files of `binlogs`."""
    stem = since.file.rpartition(".")[0] + "."
    files = sorted(f for f in os.listdir(binlogs) if f.startswith(stem) and since.file <= f <= until.file)
    program = shutil.which("mariadb-binlog") or "mysqlbinlog"
    command = [program, "--no-defaults", "--base64-output=DECODE-ROWS", f"--start-position={since.offset}"]
    command += [f"--stop-position={until.offset}", *(os.path.join(binlogs, f) for f in files)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, errors="replace").stdout
