# SPDX-License-Identifier: GPL-3.0-or-later
"""What a scratch server finds wrong, told apart: a fault of the backup, or one that the production server has too.

Only what the backup has and production has not speaks against the backup. The rest is in it because a backup is faithful.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..mysql import messages
from .production import LOGGED, Production
from .tables import Complaint

TABLE, DIRECTORY, TRANSACTION, MESSAGE = "table", "directory", "transaction", "message"
ACCEPTED = "the job accepts this fault (verify.accept)"
_MOST_WARNINGS = 5
_OF_PLUGIN = re.compile(r"Plugin '(?P<name>[^']+)'|shared library '(?:[^']*/)?(?P<library>[^'/]+)'")


@dataclass(frozen=True)
class KnownFault:
    """A fault that is not the backup's own.

    :ivar kind: table, directory, transaction, message
    :ivar name: ``schema.table``, the directory, the XID; "" of a message that names nothing
    :ivar fault: the server's words
    :ivar evidence: why it is production's
    """

    kind: str
    name: str
    fault: str
    evidence: str

    def as_dict(self) -> Dict[str, str]:
        """Return it as the manifest has it."""
        return {"kind": self.kind, "name": self.name, "fault": self.fault, "evidence": self.evidence, "sentence": self.sentence()}

    def sentence(self) -> str:
        if self.kind == DIRECTORY:
            return "the data directory holds %s, which is no name of a database or table: the server leaves it alone" % self.name
        if self.kind == TRANSACTION:
            return "the transaction %s of an application is prepared: after a restore, XA COMMIT or XA ROLLBACK it" % self.name
        return "%s: %s" % (self.evidence, self.fault)


def warnings(known: Sequence[KnownFault]) -> List[str]:
    """Return sentences about known faults, not too many."""
    said = [fault.sentence() for fault in known[:_MOST_WARNINGS]]
    more = len(known) - len(said)
    return [*said, "%d more known faults of the server: `stillpoint show` has them" % more] if more else said


@dataclass
class Judge:
    """Tells known faults from those of the backup.

    :ivar production: None: it can't be asked
    :ivar accept: tables whose faults the job accepts: ``schema.table``, ``schema.*``
    :ivar recorded: tables that the backup's own proof found production to have the fault of
    """

    production: Optional[Production] = None
    accept: Sequence[str] = ()
    recorded: Sequence[str] = ()
    plugins: Sequence[str] = ()
    known: List[KnownFault] = field(default_factory=list)
    _judged: Dict[Complaint, bool] = field(default_factory=dict)

    def table(self, complaint: Complaint) -> bool:
        """Tell whether what is wrong with a table is a known fault, and note it then."""
        if complaint not in self._judged:
            evidence = self._evidence(complaint)
            self._judged[complaint] = bool(evidence)
            if evidence and not any(fault.name == complaint.table for fault in self.known):
                self.known.append(KnownFault(TABLE, complaint.table, complaint.text, evidence))
        return self._judged[complaint]

    def against(self, lines: Sequence[str], judged: Sequence[Complaint]) -> List[str]:
        """Return those of the errors that a scratch server has logged which speak against the backup; note the known ones.

        :param judged: complaints whose lines need no judgement any more
        """
        done = {line for complaint in judged for line in complaint.lines}
        found = []
        for line, table in zip(lines, messages.tables_of(lines)):
            if line not in done and not self._is_known(line, table):
                found.append(line)
            done.add(line)
        return found

    def transaction(self, xid: str) -> None:
        """Note a transaction that an application has prepared: the backup has to hold it."""
        self.known.append(KnownFault(TRANSACTION, xid, "prepared, neither committed nor rolled back", "an application has prepared it"))

    def is_of_extra_plugin(self, line: str) -> bool:
        """Tell whether a line is about a plugin that no table's rows depend on, which the scratch server could not start."""
        match = _OF_PLUGIN.search(line)
        if not match or messages.table_of(line):
            return False
        return any(_is_extra(plugin) and match.group(0).find(part) >= 0 for plugin in self.plugins for part in plugin.split("="))

    def _is_known(self, line: str, table: Optional[str]) -> bool:
        name = messages.no_name(line)
        if name is not None:
            if not any(fault.name == name for fault in self.known):
                self.known.append(KnownFault(DIRECTORY, name, line, "it lies in the data directory"))
            return True
        if self.is_of_extra_plugin(line):
            return True
        if table is not None:
            schema, _dot, rest = table.partition(".")
            return self.table(Complaint((schema, rest), (), (line,)))
        if self.production is not None and self.production.has_said(line):
            self.known.append(KnownFault(MESSAGE, "", line, LOGGED))
            return True
        return False

    def _evidence(self, complaint: Complaint) -> str:
        if accepted(complaint.table, self.accept):
            return ACCEPTED
        if complaint.table in self.recorded:
            return "production had the same fault when the backup was taken"
        return self.production.evidence(complaint) if self.production else ""


def _is_extra(plugin: str) -> bool:
    return not any(word in plugin.lower() for word in ("key", "encrypt", "ha_", "provider"))


def accepted(table: str, names: Sequence[str]) -> bool:
    """Tell whether a job accepts the faults of a table: it names it, or its schema (``schema.*``)."""
    return table in names or table.partition(".")[0] + ".*" in names


def recorded_tables(proof: Optional[Dict[str, Any]]) -> Tuple[str, ...]:
    """Return the tables whose faults a proof, as a manifest has it, found to be production's."""
    known = (proof or {}).get("known_faults") or ()
    return tuple(str(fault["name"]) for fault in known if fault.get("kind") == TABLE and fault.get("evidence") != ACCEPTED)
