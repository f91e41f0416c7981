# SPDX-License-Identifier: GPL-3.0-or-later
"""What is asked for of a dump."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional, Sequence

from ...dump import sections
from ...dump.contents import Key, shown
from ...dump.sections import Section
from ...host.text import count

_MOST_NAMED = 8


@dataclass(frozen=True)
class What:
    """What is asked for of a dump; with neither, all of it."""

    database: Optional[str] = None
    table: Optional[Key] = None

    def wants(self, section: Section) -> bool:
        """Tell whether a section is part of it; a dump's beginning and end are part of everything."""
        if section.kind in (sections.HEAD, sections.FOOT):
            return True
        if self.table is None:
            return self.database in (None, section.database)
        if section.database != self.table[0]:
            return False
        return section.kind == sections.DATABASE or (section.name == self.table[1] and section.kind != sections.STAND_IN)

    def __str__(self) -> str:
        if self.table:
            return "the table %s.%s" % (shown(self.table[0]), shown(self.table[1]))
        return "the database %s" % shown(self.database) if self.database else "all databases"


def named(names: Sequence[str]) -> str:
    """Return names for a sentence, the first of them where there are many."""
    more = " and %s more" % count(len(names) - _MOST_NAMED) if len(names) > _MOST_NAMED else ""
    return ", ".join(map(shown, names[:_MOST_NAMED])) + more
