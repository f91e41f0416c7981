# SPDX-License-Identifier: GPL-3.0-or-later
"""Views that no program can dump, as the text that makes them: beside the dump, and tried again when it is loaded."""

from __future__ import annotations

import re
from typing import List, Sequence, Tuple

from ..mysql.connection import ServerError, Session
from .contents import InvalidView, Key, quoted, shown
from .sections import statements

_HEAD = "-- View "
_NAMES = re.compile(r"%s(`(?:[^`]|``)*`)\.(`(?:[^`]|``)*`), (\w+)\n" % _HEAD)


def text(views: Sequence[InvalidView]) -> str:
    """Return the views as SQL that a person, or `parse`, can read."""
    lines = ["-- Views that were invalid when the dump was taken, and are not in it.\n"]
    for view in views:
        heading = "%s%s.%s, %s" % (_HEAD, quoted(view.database), quoted(view.name), view.collation)
        lines.append("%s\n-- %s\nUSE %s;\n%s;\n" % (heading, " ".join(view.why.split()), quoted(view.database), view.text))
    return "\n".join(lines)


def parse(sql: str) -> List[InvalidView]:
    """Return the views of a text that `text` made, without what was wrong with them."""
    found = []
    parts = _NAMES.split(sql)[1:]
    for database, name, collation, body in zip(*(parts[each::4] for each in range(4))):
        (_use, create) = statements(body.encode("utf-8", "surrogateescape"))
        plain = create.decode("utf-8", "surrogateescape").strip().rstrip(";")
        found.append(InvalidView(_plain(database), _plain(name), "", plain, collation))
    return found


def _plain(name: str) -> str:
    return name[1:-1].replace("``", "`")


def make(session: Session, views: Sequence[InvalidView]) -> List[Tuple[Key, str]]:
    """Make views, each as long as the server accepts it, and return those that it does not, with its words."""
    waiting = list(views)
    while True:
        refused = [(view, why) for view, why in ((view, _make(session, view)) for view in waiting) if why]
        if not refused or len(refused) == len(waiting):
            return [((view.database, view.name), why) for view, why in refused]
        waiting = [view for view, _why in refused]  # one may be made of another one


def _make(session: Session, view: InvalidView) -> str:
    """Make a view and return why not; "" where it is made."""
    try:
        session.do("USE %s" % quoted(view.database), "SET SESSION collation_connection = %s" % view.collation, view.text)
    except ServerError as error:
        if error.connection_lost:
            raise
        return error.text
    finally:
        session.do("SET NAMES utf8mb4")
    return ""


def left_out(refused: Sequence[Tuple[Key, str]]) -> List[str]:
    """Return a sentence for each view that could not be made."""
    return ["the view %s.%s was invalid when the dump was taken, and can't be made: %s" % (*map(shown, key), why) for key, why in refused]
