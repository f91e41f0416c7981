# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose a job's directory is, and how a machine with a new name goes on with what it has."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import Any, Dict, List, Optional

import pytest
from _core.host import machine as machines
from _core.host.errors import BusyError, StillpointError, UsageError
from _core.host.machine import Machine, this_machine
from _core.mysql import server as servers
from _core.mysql.connection import Session
from _core.repository import adoption, identity
from _core.repository.identity import Identity
from _core.repository.job_directory import JobDirectory
from real_server import INSTALL, needed, real_server
from trees import back_up, killed_at, no_waiting_for_the_disk, tree, write  # noqa: F401

HERE = Machine("1" * 32, "hardware-1")
CLONE = Machine("1" * 32, "hardware-2")
OTHER = Machine("2" * 32, "hardware-1")
SERVER = {"datadir": "/var/lib/mysql", "data_id": "aa"}


class Fleet:
    """A repository that several hosts write to."""

    def __init__(self, top: str) -> None:
        self.repository = top + "/backups"
        self.files = top + "/app"
        os.makedirs(self.repository)
        os.makedirs(self.files)
        write(self.files + "/index")
        self.hours = 0

    def of(self, host: str) -> JobDirectory:
        return JobDirectory.open(self.repository, host, "web")

    def run(self, host: str, machine: Machine, server: Optional[Dict[str, Any]] = None) -> str:
        """Back up as a run does, which has asked for former names first; return the generation's name."""
        directory = self.of(host)
        formers = identity.check(directory, Identity(machine, server))
        directory.sequence = max((former.sequence for former in formers), default=0)
        self.hours += 1
        made = back_up(directory, tree(self.files), hours=self.hours, host=host, machine=machine.as_dict(), server=server)
        return made.name

    def adopt(self, host: str, machine: Machine, source: Optional[str] = None) -> None:
        adoption.execute(adoption.plan(self.of(host), Identity(machine), source))

    def names(self, host: str) -> List[str]:
        return [each.name for each in reversed(self.of(host).generations())]


@pytest.fixture
def fleet(tmp_path: Any) -> Fleet:
    return Fleet(str(tmp_path))


@pytest.mark.parametrize(
    "owner, own, stranger",
    [
        (Identity(HERE), Identity(OTHER), "another machine of this name (machine-id %s, here %s)" % ("1" * 32, "2" * 32)),
        (Identity(HERE), Identity(CLONE), "another machine of this name (hardware UUID hardware-1, here hardware-2)"),
        (Identity(HERE), Identity(Machine("1" * 32)), ""),
        (Identity(HERE), Identity(Machine()), ""),
        (Identity(Machine()), Identity(HERE), ""),
        (Identity(HERE, SERVER), Identity(HERE), ""),
        (Identity(HERE, SERVER), Identity(HERE, {**SERVER, "datadir": "/srv/mysql"}), ""),
        (Identity(HERE, SERVER), Identity(HERE, {**SERVER, "data_id": "bb"}), ""),
        (
            Identity(HERE, SERVER),
            Identity(HERE, {"datadir": "/srv/two", "data_id": "bb"}),
            "another server of this host (data directory /var/lib/mysql, here /srv/two)",
        ),
        (
            Identity(HERE, {"datadir": "/a", "data_id": None}),
            Identity(HERE, {"datadir": "/b", "data_id": None}),
            "another server of this host (data directory /a, here /b)",
        ),
    ],
)
def test_another_machine_or_server_is_a_stranger_and_one_that_moved_or_is_not_known_is_none(owner: Identity, own: Identity, stranger: str) -> None:
    assert own.stranger(owner) == stranger


def test_a_machine_is_known_by_what_lasts(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, path, text in (("MACHINE_ID", "machine-id", "AB12\n"), ("HARDWARE_ID", "uuid", "4C4C\n")):
        (tmp_path / path).write_text(text)
        monkeypatch.setattr(machines, name, str(tmp_path / path))
    assert this_machine() == Machine("ab12", "4c4c") == machines.from_dict(this_machine().as_dict())
    (tmp_path / "machine-id").write_text("uninitialized\n")
    (tmp_path / "uuid").unlink()
    assert this_machine() == Machine() == machines.from_dict(None)


def test_a_clone_that_would_write_into_anothers_job_is_refused_with_the_way_out(fleet: Fleet) -> None:
    fleet.run("db1", HERE, SERVER)
    for stranger in (OTHER, CLONE):
        with pytest.raises(StillpointError, match="are of another machine of this name .*host name or a job of its own, .*`stillpoint adopt web`"):
            fleet.run("db1", stranger, SERVER)
    fleet.run("db1", HERE, SERVER)


def test_a_job_that_was_taken_over_belongs_to_who_took_it_before_and_after_the_next_backup(fleet: Fleet) -> None:
    fleet.run("db1", HERE)
    fleet.adopt("db1", OTHER)
    with pytest.raises(StillpointError, match="another machine"):
        fleet.run("db1", HERE)
    fleet.run("db1", OTHER)
    with pytest.raises(StillpointError, match="another machine"):
        fleet.run("db1", HERE)
    assert len(fleet.names("db1")) == 2


def test_a_renamed_host_is_told_where_its_backups_are_and_goes_on_with_them_once_confirmed(fleet: Fleet) -> None:
    first = fleet.run("old", HERE)
    fleet.run("neighbour", OTHER)
    (former,) = identity.check(fleet.of("new"), Identity(HERE))
    assert str(former) == (
        "1 backups of this machine lie in %s, from when it was called old: `stillpoint adopt web` goes on with them" % fleet.of("old").path
    )
    fleet.adopt("new", HERE)
    assert sorted(os.listdir(fleet.repository)) == ["neighbour", "new"]
    assert identity.check(fleet.of("new"), Identity(HERE)) == []
    second = fleet.run("new", HERE)
    assert fleet.names("new") == [first, second]
    one, two = (os.path.join(fleet.of("new").path, name, "files/tree/index") for name in (first, second))
    assert os.path.samefile(one, two)


def test_what_was_backed_up_under_the_new_name_before_that_comes_after_what_is_older(fleet: Fleet) -> None:
    names = [fleet.run("old", HERE), fleet.run("old", HERE), fleet.run("new", HERE), fleet.run("new", HERE)]
    directory = fleet.of("new")
    verdict = {"generation": names[2], "time": "2026-11-23T00:00:00Z", "ok": False, "files": 1, "faults": ["x"], "faults_total": 1}
    directory.record(directory.find(names[2]), verdict)
    fleet.adopt("new", HERE)
    assert fleet.names("new") == names
    assert [each.state for each in fleet.of("new").generations()] == ["good", "bad", "good", "good"]
    assert os.readlink(directory.path + "/latest") == names[3]


def test_a_kill_at_any_step_of_an_adoption_loses_nothing_and_the_same_command_finishes_it(tmp_path: Any) -> None:
    step = 0
    while True:
        fleet = Fleet(str(tmp_path / str(step)))
        names = [fleet.run("old", HERE), fleet.run("new", HERE), fleet.run("new", HERE)]
        directory = fleet.of("new")
        directory.record(directory.find(names[1]), {"generation": names[1], "time": "2026-11-23T00:00:00Z", "ok": False, "faults_total": 1, "faults": ["x"]})
        os.makedirs(fleet.of("old").path + "/binlog")
        killed = killed_at(step, lambda fleet=fleet: fleet.adopt("new", HERE))
        everywhere = fleet.names("old") + fleet.names("new")
        assert sorted(everywhere) == sorted(names), step
        assert [each.name for host in ("old", "new") for each in fleet.of(host).generations() if each.state == "bad"] == [names[1]], step
        if fleet.names("old"):
            fleet.adopt("new", HERE)
        assert fleet.names("new") == names and not fleet.names("old"), step
        assert os.path.isdir(directory.path + "/binlog"), step
        if not killed:
            break
        step += 1
    assert step > 8


def test_an_adoption_waits_for_nobody_and_takes_nothing_from_under_a_reader(fleet: Fleet) -> None:
    fleet.run("old", HERE)
    with fleet.of("old").generations()[0].hold(), pytest.raises(BusyError, match="is being read"):
        fleet.adopt("new", HERE)
    with fleet.of("old").lock(), pytest.raises(BusyError):
        fleet.adopt("new", HERE)
    fleet.adopt("new", HERE)


def test_what_can_not_be_adopted_is_refused_and_said(fleet: Fleet) -> None:
    fleet.run("mine", HERE)
    fleet.run("theirs", OTHER)
    for source, text in ((None, "are this machine's already"), ("nobody", "no backups of web of the host nobody .*there are some of theirs")):
        with pytest.raises(UsageError, match=text):
            fleet.adopt("mine", HERE, source)
    with pytest.raises(StillpointError, match="both hold backups, and .* does not follow on the others"):
        fleet.adopt("mine", HERE, "theirs")
    for host in ("second", "third"):
        shutil.copytree(fleet.of("mine").path, fleet.of(host).path, symlinks=True)
    with pytest.raises(UsageError, match="had several names, mine, second, third: say which"):
        fleet.adopt("fourth", HERE)


def test_a_replaced_machine_goes_on_with_the_backups_of_another_name(fleet: Fleet) -> None:
    fleet.run("old", HERE)
    assert identity.check(fleet.of("new"), Identity(OTHER)) == []
    fleet.adopt("new", OTHER, "old")
    fleet.run("new", OTHER)
    assert len(fleet.names("new")) == 2


def test_who_finds_no_backup_is_told_which_hosts_have_some(fleet: Fleet) -> None:
    fleet.run("db1", HERE)
    fleet.run("db2", OTHER)
    with pytest.raises(UsageError, match="nothing was backed up there yet; of web there are backups of db1, db2: name one with --from-host"):
        fleet.of("db3").find()


class TestServers:
    pytestmark = needed

    def test_two_servers_of_one_host_are_told_apart_and_a_moved_data_directory_is_not_another_server(self, tmp_path: Any) -> None:
        fresh = str(tmp_path / "fresh")
        install = [str(INSTALL), "--no-defaults", "--datadir=" + fresh, "--skip-test-db"]
        subprocess.run(install, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
        with real_server() as server:
            with Session(server.login) as session:
                known = servers.read(session).summary()
            another = {**known, "datadir": fresh, "data_id": servers._data_id({}, fresh)}
            assert known["data_id"] and another["data_id"]
            assert Identity(HERE, another).stranger(Identity(HERE, known)).startswith("another server of this host (data directory ")
            copy = {**known, "datadir": fresh}
            assert Identity(HERE, copy).stranger(Identity(HERE, known)).startswith("another server of this host")
            server.stop()
            os.rename(server.datadir, server.top + "/moved")
            os.symlink("moved", server.datadir)
            server.start()
            with Session(server.login) as session:
                moved = servers.read(session).summary()
            assert moved["datadir"] == server.top + "/moved"
            assert Identity(HERE, moved).stranger(Identity(HERE, known)) == ""
