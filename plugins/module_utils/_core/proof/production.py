# SPDX-License-Identifier: GPL-3.0-or-later
"""What the production server has against a table, or has said, asked without a lock that anybody would wait for.

It is asked in two ways. ``CHECK TABLE … FOR UPGRADE`` opens a table and compares its definition: it reads no row, repairs nothing, and
needs SELECT. The account of a backup has no privilege on tables: then the table's own files tell. Where they are the same on the live
data directory as in the copy, byte for byte, production has whatever is wrong with them. CHECK TABLE itself is left alone on
production: it locks MyISAM tables, and a broken page ends some servers.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Callable, Dict, FrozenSet, List, Optional

from ..host.errors import StillpointError
from ..mysql import messages
from ..mysql.connection import Login, ServerError, Session
from .tables import GENERIC, Complaint, Name, check_table, files_of_table

_WAIT = 2  # seconds for a lock on the definition of a table, and for an answer of the server
_ANSWER = 30
_BLOCK = 1 << 20
LOGGED = "production has the same fault, as its error log says"
# Complaints about a definition, which lies in a file of its own.
_DEFINITION = re.compile(
    r"upgrade required|rebuild required|Incorrect definition|Column count of|wrong structure|Incorrect information in file|please run|"
    r"Malformed file type|Unknown data type|Unknown collation|table definition",
    re.IGNORECASE,
)
# A page that can't be read for want of a key or a plugin: the same file is well where they are there.
_NEEDS_MORE = re.compile("encrypt|decrypt|uncompress", re.IGNORECASE)
_DEFINED = (".frm", ".par", ".MRG", ".TRG")
_INDEX = (".MYI", ".MAI")
_HEADER_LENGTH = slice(6, 8)  # where the header of an index of MyISAM or Aria says how long it is (myisamdef.h, maria_def.h)


@dataclass
class Production:
    """The running server that a copy is of.

    :ivar datadir: its data directory on this host
    :ivar copy: where that lies in the copy
    :ivar tick: called before each question, and a few times a second while files are compared
    """

    login: Login
    datadir: str
    copy: str
    tick: Callable[[], None] = lambda: None
    _errors: Optional[FrozenSet[str]] = field(default=None, repr=False)

    def evidence(self, complaint: Complaint) -> str:
        """Return how production shows the same fault of a table; "" where it does not, or can't be asked."""
        self.tick()
        words = {word.lower() for word in complaint.words} - set(GENERIC)
        if words and words & self._words(complaint.name):
            return "production has the same fault, as it says itself"
        if any(messages.table_of(line) == complaint.table and line in self._said() for line in complaint.lines):
            return LOGGED
        return self._same_files(complaint)

    def has_said(self, line: str) -> bool:
        """Tell whether a line that tells something by itself is in production's own error log since its start."""
        return not messages.is_foreword(line) and line in self._said()

    def _words(self, name: Name) -> FrozenSet[str]:
        """Return what production says against a table, in small letters, as far as it tells by opening it."""
        try:
            with _asking(self.login) as session:
                return frozenset(word.lower() for word in check_table(session, name, "FOR UPGRADE"))
        except ServerError as error:
            return frozenset([error.text.lower()])
        except StillpointError:
            return frozenset()

    def _said(self) -> FrozenSet[str]:
        if self._errors is None:
            self._errors = frozenset()
            with suppress(StillpointError), _asking(self.login) as session:
                self._errors = messages.said_by(session)
        return self._errors

    def _same_files(self, complaint: Complaint) -> str:
        """Return that the live files of a table are those of the copy; "" where they differ, or there are none."""
        said = (*complaint.words, *complaint.lines)
        if any(_NEEDS_MORE.search(text) for text in said):
            return ""
        copied, live = (_with_children(datadir, files_of_table(datadir, complaint.name)) for datadir in (self.copy, self.datadir))
        what = "files are"
        if any(_DEFINITION.search(text) for text in said):
            copied, live = ({name: path for name, path in each.items() if name.endswith(_DEFINED)} for each in (copied, live))
            what = "definition is"
        if not copied or copied.keys() != live.keys() or not all(_same(path, live[name], self.tick) for name, path in copied.items()):
            return ""
        return "production has the same fault, as its %s the same, byte for byte" % what


def _asking(login: Login) -> Session:
    """Return a session whose statements end soon.

    :raises StillpointError: the server does not answer
    """
    session = Session(login, read_timeout=_ANSWER)
    session.do("SET SESSION lock_wait_timeout = %d" % _WAIT)
    with suppress(ServerError):  # of MariaDB
        session.do("SET SESSION max_statement_time = %d" % _WAIT)
    return session


def _with_children(datadir: str, files: Dict[str, str]) -> Dict[str, str]:
    """Return the files of a table, and of a MERGE table those of its children; a child without files has an empty path."""
    found = dict(files)
    for name, path in files.items():
        if name.endswith(".MRG"):
            schema = os.path.dirname(name)
            for child in _children(path):
                first = os.path.normpath(child).lstrip("./") if "/" in child else os.path.join(schema, child)
                of_child = {first + end: os.path.join(datadir, first + end) for end in (".frm", ".MYI", ".MYD")}
                found.update({file: there if os.path.exists(there) else "" for file, there in of_child.items()})
    return found


def _children(path: str) -> List[str]:
    """Return the tables that a MERGE table's file names: one a line, besides options (``#INSERT_METHOD=LAST``)."""
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        return [line.strip() for line in file if line.strip() and not line.startswith("#")]


def _same(one: str, other: str, tick: Callable[[], None]) -> bool:
    """Tell whether two files are the same; of an index of MyISAM or Aria without the header, in which a check notes what it has found."""
    if not one or not other:
        return one == other
    try:
        with open(one, "rb") as first, open(other, "rb") as second:
            a, b = os.fstat(first.fileno()), os.fstat(second.fileno())
            if a.st_size != b.st_size or os.path.samestat(a, b):  # a file says nothing of itself
                return False
            if one.endswith(_INDEX):
                for file in (first, second):
                    file.seek(int.from_bytes(file.read(8)[_HEADER_LENGTH], "big"))
            while True:
                tick()
                block = first.read(_BLOCK)
                if block != second.read(_BLOCK):
                    return False
                if not block:
                    return True
    except OSError:
        return False
