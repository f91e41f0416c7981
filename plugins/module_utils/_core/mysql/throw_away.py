# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a server makes anew at each start, or never looks at again: no part of a backup, and sometimes the largest."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import List, Mapping, Tuple

_CORE = re.compile(r"core(\.\d+)?")
_ELF_CORE = (b"\x7fELF", b"\x04\x00")  # elf(5): EI_MAG, and e_type ET_CORE at offset 16

# Temporary tables of statements (MariaDB), in whatever directory. Tables of an ALTER that was interrupted have other names (#sql-alter-, #sql-ib):
# InnoDB's dictionary may refer to them.
_TEMPORARY_TABLES = "#sql-temptable-*"


@dataclass(frozen=True)
class ThrowAway:
    """What of a server's directories is thrown away.

    :ivar patterns: paths of files, with rsync's wildcards
    :ivar directories: for temporary files alone
    """

    patterns: Tuple[str, ...] = ()
    directories: Tuple[str, ...] = ()

    def below(self, path: str) -> List[str]:
        """Return rsync's patterns for what lies in a directory of the server, which they are anchored to."""
        anchored = ["/" + os.path.relpath(pattern, path) for pattern in self.patterns if pattern.startswith(path.rstrip("/") + "/")]
        return [*anchored, _TEMPORARY_TABLES]


def throw_away(variables: Mapping[str, str], datadir: str) -> ThrowAway:
    """Return what a server throws away, by its variables."""

    def absolute(value: str, above: str = datadir) -> str:
        return os.path.realpath(os.path.join(above, value or "."))

    home = absolute(variables.get("innodb_data_home_dir", ""))
    patterns = []
    for part in variables.get("innodb_temp_data_file_path", "").split(";"):  # ibtmp1:12M:autoextend
        name = part.split(":")[0].strip()
        if name:
            above, file_name = os.path.split(os.path.join(home, name))
            patterns.append(os.path.join(absolute(above), _literal(file_name)))
    sessions = variables.get("innodb_temp_tablespaces_dir", "")  # MySQL 8
    if sessions:
        patterns.append(os.path.join(absolute(sessions), "temp_*.ibt"))
    places = [variables.get(name) or "" for name in ("tmpdir", "slave_load_tmpdir", "replica_load_tmpdir", "innodb_tmpdir")]
    directories = sorted({absolute(place) for value in places for place in value.split(":") if place})
    for place in variables.get("tmpdir", "").split(":"):  # holds temporary tables of statements and sessions, and no others
        if place:
            patterns.append(os.path.join(absolute(place), "#sql*"))
    patterns += [os.path.join(datadir, name) for name in core_dumps(datadir)]
    return ThrowAway(tuple(patterns), tuple(each for each in directories if each.startswith(datadir + "/")))


def core_dumps(directory: str) -> List[str]:
    """Return the names of core dumps in a directory: a database may be called core, too."""
    files = (entry for entry in os.scandir(directory) if _CORE.fullmatch(entry.name) and entry.is_file(follow_symlinks=False))
    return sorted(entry.name for entry in files if _is_core(entry.path))


def _is_core(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            head = file.read(18)
    except OSError:
        return False
    return head[:4] == _ELF_CORE[0] and head[16:18] in (_ELF_CORE[1], _ELF_CORE[1][::-1])


def _literal(name: str) -> str:
    return re.sub(r"([\\*?\[])", r"\\\1", name) if re.search(r"[*?\[]", name) else name
