# SPDX-License-Identifier: GPL-3.0-or-later
"""The journal of a restore in place, as it is on the disk."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest
from _core.job.names import host_name
from _core.repository.generation import RecordedTree
from _core.restore import journal
from _core.restore.in_place.targets import Target
from _core.restore.journal import Journal, KeptPath
from _core.restore.server_logs import Logs
from _core.restore.unit import Unit

TREE = RecordedTree("mysql", "/var/lib/mysql", 3, 3018, 8192, "mysql", "mysql")
TARGET = Target(TREE, "/srv/mysql", "/srv/.mysql.stillpoint-new", "/srv/mysql.replaced-20261122T020005Z", False, (104, 27), (105, 27))
WHOLE = Journal(
    job="etrial",
    host="db1",
    generation="2026-11-22T02-00-05Z",
    path="/backups/db1/etrial/2026-11-22T02-00-05Z",
    parts="database",
    targets=(TARGET,),
    part="/srv",
    time="2026-11-22T14:03:07.000Z",
    moment={"--until": "2026-11-22T14:03:07Z"},
    server=Unit("mariadb.service", ("mariadb.socket",), "/srv/mysql", True),
    logs=Logs("/var/log/mysql/bin", "/var/log/mysql/bin.index", "/srv/mysql", ("/srv/mysql",), "20261122T020005Z"),
    archives=("/backups/db1/etrial/binlog",),
    phase=journal.READY,
    identities=("1, born 2.3",),
    old=(None,),
    old_logs=("bin.000001",),
    gtids="0-1-4711",
    recovery={"stops_at": "bin.000002:4"},
    disabled=("events were disabled",),
    kept=(KeptPath("/srv/mysql.replaced-20261122T020005Z", "/srv/mysql", "4, born 5.6"),),
)


def test_all_that_a_journal_says_is_read_as_it_was_written(tmp_path: Path) -> None:
    missing = [field.name for field in fields(Journal) if field.default == getattr(WHOLE, field.name)]
    assert missing == [], "a field at its default shows nothing"
    journal.write(str(tmp_path), WHOLE)
    assert journal.read(str(tmp_path)) == WHOLE
    assert journal.pending(state=str(tmp_path)) == WHOLE


@pytest.mark.parametrize("changed", [{}, {"server": None, "logs": None, "moment": None, "part": None}])
def test_a_phase_is_on_the_disk_when_it_is_reached(tmp_path: Path, changed: "dict[str, None]") -> None:
    now = WHOLE.at(journal.COPYING, str(tmp_path), **changed)
    assert journal.read(str(tmp_path)) == now and now.phase == journal.COPYING
    assert journal.pending(state=str(tmp_path)) is None, "nothing live was touched"
    journal.forget(str(tmp_path))
    assert journal.read(str(tmp_path)) is None


@pytest.mark.parametrize(
    "changed, words",
    [
        ({"moment": None}, "--from-host db1 --path /srv"),
        ({"part": None}, "--from-host db1 --only database --until 2026-11-22T14:03:07Z"),
        ({"host": host_name(), "part": "/a b", "moment": None}, "--path '/a b'"),
        ({"host": host_name(), "part": None, "parts": "all", "moment": None}, ""),
    ],
)
def test_the_way_to_finish_a_restore_is_the_command_that_began_it(tmp_path: Path, changed: "dict[str, str]", words: str) -> None:
    command = " ".join(["stillpoint restore etrial 2026-11-22T02-00-05Z", *([words] if words else [])])
    assert WHOLE.at(journal.READY, str(tmp_path), **changed).ways_out == "finish it, with %s, or undo it, with stillpoint undo etrial" % command
