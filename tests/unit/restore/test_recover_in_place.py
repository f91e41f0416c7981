# SPDX-License-Identifier: GPL-3.0-or-later
"""Recovery in place, with a real server: what becomes of its binary logs, and what its own logging goes on from."""

from __future__ import annotations

import os
from typing import List, Optional, Set

import pytest
from _core.archive.archive import Archive
from _core.binlog import gtid
from _core.host.errors import StillpointError
from _core.mysql.connection import Session
from _core.repository.generation import Generation
from _core.restore import gtid_state
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from _core.restore.in_place.replaced import discard, replaced
from _core.restore.result import RestoreResult
from _core.restore.server_logs import Logs
from shop import Shop, marked, next_second
from trees import Quiet

pytest.importorskip("pymysql")

INSIDE = ("--log-bin=bin", "--log-bin-index=bin")  # the logs are in the data directory
LOGS = Logs("/nowhere/bin", "/nowhere/bin.index", "/nowhere", (), "")


def put_back(shop: Shop, generation: Generation, until: Optional[str] = None) -> RestoreResult:
    made = shop.recovery(name=generation.name, until=until) if until else None
    return execute(planning.make(generation, replay=made, archives=[shop.archive], state=str(shop.top / "state")), Quiet())


def value(shop: Shop, variable: str) -> str:
    with Session(shop.server.login) as session:
        return str(session.value("SELECT @@GLOBAL.%s" % variable))


@marked
def test_in_place_the_live_data_is_exchanged_only_after_the_replay_and_the_old_logs_are_set_aside(shop: Shop) -> None:
    shop.back_up()
    rows = shop.write()
    moment = next_second()
    shop.server.do("DROP TABLE d.orders")
    shop.archive_logs()
    made = shop.recovery(until=moment)
    shop.server.stop()
    old_logs: Set[str] = set(os.listdir(shop.server.binlogs))
    live = os.stat(shop.server.datadir).st_ino
    seen: List[int] = []

    class Looking(Quiet):
        def stage(self, name: str) -> None:
            super().stage(name)
            seen.append(os.stat(shop.server.datadir).st_ino)

    reporter = Looking()
    plan = planning.make(made.recovery.generation, replay=made, archives=[shop.archive], state=str(shop.top / "state"))
    assert "set aside" in "\n".join(plan.lines())
    assert "take a backup as soon as it is done" in "\n".join(plan.lines())
    done = execute(plan, reporter)
    assert reporter.stages[: reporter.stages.index("replay") + 1] == ["copy", "replay"]
    assert seen[: reporter.stages.index("replace") + 1] == [live] * (reporter.stages.index("replace") + 1)
    assert any("take a backup" in warning for warning in done.warnings)
    (kept,) = [path for path in done.replaced if path.startswith(shop.server.binlogs)]
    assert set(os.listdir(kept)) == old_logs
    shop.server.start()
    with Session(shop.server.login) as session:
        assert session.value("SELECT COUNT(*) FROM d.orders") == rows
    shop.write(2)
    shop.archive_logs()
    assert [line.reason for line in shop.archive.lines()] == ["first", "restored"]
    with pytest.raises(StillpointError, match="does not reach .*the server's data was replaced by the backup"):  # what came after belongs to no backup yet
        shop.recovery(until=next_second())
    for each in replaced(state=str(shop.top / "state")):
        discard([each], Quiet(), state=str(shop.top / "state"))
    assert not os.path.exists(kept)


@marked
def test_a_repository_that_is_mounted_read_only_can_be_restored_from(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    generation = shop.back_up()
    rows = shop.rows
    shop.write()
    shop.archive_logs()
    shop.server.stop()
    monkeypatch.setattr(Archive, "writable", False)
    plan = planning.make(generation, archives=[shop.archive], state=str(shop.top / "state"))
    assert "will not learn of the restore" in "\n".join(plan.lines())
    execute(plan, Quiet())
    assert shop.archive.restored() is None
    shop.server.start()
    with Session(shop.server.login) as session:
        assert session.value("SELECT COUNT(*) FROM d.orders") == rows


@marked
def test_logs_in_the_data_directory_that_come_back_with_a_backup_are_not_archived_again(shop: Shop) -> None:
    shop.server.stop()
    shop.server.start(*INSIDE)
    shop.server.do("FLUSH BINARY LOGS")
    generation = shop.back_up()
    rows = shop.write()
    moment = next_second()
    shop.write(1)
    shop.archive_logs()
    shop.server.stop()
    put_back(shop, generation)
    shop.server.start(*INSIDE)
    shop.write(1)
    shop.archive_logs()
    first, second = shop.archive.lines()
    assert (second.reason, second.start) == ("restored", "bin.000001")
    # what was committed before the restore can still be had, from the same backup
    assert shop.count(shop.restore(until=moment)[0]) == rows


@marked
@pytest.mark.parametrize("place", ["beside the data", "in the data"])
@pytest.mark.parametrize("how", ["the backup alone", "and its logs", "without an archive"])
def test_no_gtid_is_given_out_a_second_time_after_a_restore(shop: Shop, place: str, how: str) -> None:
    server, options = shop.server, INSIDE if place == "in the data" else ()
    if options:
        server.stop()
        server.start(*options)
    with Session(server.login) as session:  # another server's, and another domain
        session.do("SET SESSION server_id = 7", "CREATE TABLE d.theirs (i INT)")
        session.do("SET SESSION gtid_domain_id = 3", "CREATE TABLE d.elsewhere (i INT)")
    generation = shop.back_up()
    shop.write()
    moment = next_second()
    shop.write(4)
    if how != "without an archive":
        shop.archive_logs()
    shop.write(2)
    with Session(server.login) as session:  # the last that is given out
        session.do("SET SESSION gtid_domain_id = 3", "CREATE TABLE d.lost (i INT)")
    given = gtid.MariaState.parse(value(shop, "gtid_binlog_state"))
    server.stop()
    put_back(shop, generation, until=moment if how == "and its logs" else None)
    server.start(*options)
    assert gtid.MariaState.parse(value(shop, "gtid_binlog_state")).numbers == given.numbers
    rows = 6 if how == "and its logs" else 0
    with Session(server.login) as session:
        assert session.value("SELECT COUNT(*) FROM d.orders") == rows
        session.do("INSERT INTO d.orders (s) VALUES ('after')")
    new = gtid.MariaState.parse(shop.gtid()).numbers
    assert new[0, 1] == given.numbers[0, 1] + 1
    assert new[3, 1] == given.numbers[3, 1]
    if how == "without an archive":
        return
    shop.back_up()
    last = shop.gtid().split(",")[0]
    shop.write()
    shop.archive_logs()
    first, second = shop.archive.lines()
    assert second.reason == "restored"
    # one number, one transaction: nothing is ambiguous, before the restore and after it
    assert shop.count(shop.restore(until=moment)[0]) == 6
    shown = shop.recovery(until_gtid="0-1-%d" % (int(last.split("-")[2]) + 1)).recovery
    assert shown.line.number == 2


@marked
def test_a_replica_keeps_its_place_in_what_it_replicates(shop: Shop) -> None:
    server = shop.server
    server.do("SET GLOBAL gtid_slave_pos = '7-9-100'")  # of a source whose transactions are not in its own logs
    shop.back_up()
    shop.write()
    last = shop.gtid()
    shop.archive_logs()
    datadir, _done = shop.restore(until_gtid=last)
    with shop.look(datadir) as session:
        assert session.value("SELECT @@gtid_slave_pos") == last + ",7-9-100"
    (generation,) = shop.directory.generations()
    assert gtid_state.newest(generation, LOGS, [shop.archive]) == last
    generation.summary["coordinates"]["replica"] = [{"channel": ""}]
    assert gtid_state.newest(generation, LOGS, [shop.archive]) is None


@marked
def test_an_undone_restore_leaves_the_server_its_own_numbers(shop: Shop) -> None:
    generation = shop.back_up()
    shop.write()
    before = shop.gtid()
    shop.server.stop()
    plan = planning.make(generation, archives=[], state=str(shop.top / "state"))
    assert plan.logs is not None
    plan.logs.set_aside()
    gtid_state.leave(plan.logs.basename, "0-1-99999", shop.server.binlogs)
    plan.logs.set_aside()  # as the same command does that goes on after a kill
    plan.logs.put_back()
    plan.logs.put_back()
    shop.server.start()
    assert shop.gtid() == before
    shop.write(1)
    assert shop.gtid() == "0-1-%d" % (int(before.split("-")[2]) + 1)
