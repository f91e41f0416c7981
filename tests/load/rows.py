# SPDX-License-Identifier: GPL-3.0-or-later
"""What the writer writes and the judge expects: tables, file names, and file contents derived from a row."""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass

DATABASE = "stillpoint_load"
APPLICATION = "/opt/processmaker"
SOCKET = "/run/mysqld/mysqld.sock"
FILES = "shared/sites/workflow/files/load"
FILE_NAME = re.compile(r"w(\d{2})-(\d{9})\.txt\Z")


@dataclass(frozen=True)
class Case:
    """One row of `cases`; its movements, audit rows and file all follow from it."""

    writer: int
    seq: int
    amount: int
    note: str


def tables(engines: str, is_mariadb: bool) -> dict[str, str]:
    """Return name → CREATE TABLE for `engines` ("all" or "innodb"), in the order in which a writer fills them."""
    key = "writer INT NOT NULL, seq BIGINT NOT NULL"
    created = {
        "cases": f"CREATE TABLE cases ({key}, amount BIGINT NOT NULL, note VARCHAR(200) NOT NULL,"
        " PRIMARY KEY (writer, seq)) ENGINE=InnoDB",
        "movements": f"CREATE TABLE movements ({key}, side TINYINT NOT NULL, amount BIGINT NOT NULL,"
        " PRIMARY KEY (writer, seq, side)) ENGINE=InnoDB",
    }
    if engines == "innodb":
        return created
    audit = f"({key}, amount BIGINT NOT NULL, PRIMARY KEY (writer, seq))"
    created["audit"] = f"CREATE TABLE audit {audit} ENGINE=MyISAM"
    created["audit2"] = f"CREATE TABLE audit2 {audit} ENGINE={'Aria' if is_mariadb else 'MyISAM'}"
    return created


def directory(application: str, writer: int) -> str:
    """Return the directory that holds the files of `writer` below the application tree."""
    return os.path.join(application, FILES, f"w{writer:02d}")


def file_path(application: str, writer: int, seq: int) -> str:
    """Return the path of the file of one key; a thousand files share a directory."""
    return os.path.join(directory(application, writer), f"{seq // 1000:06d}", f"w{writer:02d}-{seq:09d}.txt")


def file_content(case: Case) -> bytes:
    """Return the contents of the file of `case`: 100 bytes to 16 KiB, all of it a function of the row."""
    line = f"case {case.writer}/{case.seq} amount {case.amount} note {case.note}\n"
    digest = hashlib.sha256(line.encode()).hexdigest()
    return (line + f"{digest}\n" * (1 + case.amount % 250)).encode()
