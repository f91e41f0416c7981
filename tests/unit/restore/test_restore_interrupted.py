# SPDX-License-Identifier: GPL-3.0-or-later
# ruff: noqa: F811 (fixtures of other files)
"""What a kill or a power cut in the middle of an exchange leaves: a server that may not start, and a restore that is finished or undone."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import time
import traceback
from typing import Any, Callable, Dict, Iterator, List

import pytest
from _core.archive.archive import Archive
from _core.host import durable, service
from _core.host.errors import StillpointError, Stopped, UsageError
from _core.restore import journal, undo
from _core.restore.in_place import copy, exchange
from _core.restore.in_place import plan as planning
from _core.restore.in_place.execute import execute
from _core.restore.in_place.replaced import discard, replaced
from test_restore import FakeServer, Host, empty, host, in_place, interrupted, mounted, prepared  # noqa: F401
from trees import Quiet, facts, killed_at, needs_root, no_waiting_for_the_disk, read, small_disk, write  # noqa: F401


@pytest.fixture
def server(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    server = FakeServer(host, monkeypatch)
    yield server
    server.end()


def kill_before(host: Host, function: str, number: int, **more: Any) -> None:
    """Kill a restore before its call of this number (from 1) of a function of `durable`."""
    child = os.fork()
    if child == 0:
        try:
            real, seen = getattr(durable, function), [0]

            def call(*args: Any) -> Any:
                seen[0] += 1
                if seen[0] == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*args)

            setattr(durable, function, call)
            host.restore(**more)
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


# -- the server


def test_from_the_first_rename_to_the_last_systemd_refuses_to_start_the_server(host: Host, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_unit", lambda *_args: "mariadb.service")
    live = host.root + "/live"
    subprocess.run(["cp", "-a", live, live + ".template"], check=True)
    monkeypatch.setattr(service, "start", lambda *_args: None)
    forbidden: List[int] = []
    step = 0
    while killed_at(step, host.restore):
        old = all(in_place(path, host.lived[path]) for path in host.lived)
        new = all(in_place(path, host.saved[path]) for path in host.saved)
        if not old and not new:
            assert server.forbidden(), "killed at step %d, the next boot would start the server" % step
            forbidden.append(step)
        host.restore()
        assert server.forbidden() == [] and os.listdir(server.units) == []
        discard(replaced(state=host.state), Quiet(), state=host.state)
        shutil.rmtree(live)
        subprocess.run(["cp", "-a", live + ".template", live], check=True)
        step += 1
    assert len(forbidden) >= 2


def test_a_server_that_systemd_was_told_to_leave_stopped_does_not_start_and_starts_when_the_restore_is_finished(host: Host, server: FakeServer) -> None:
    server.begin()
    interrupted(host)
    with pytest.raises(StillpointError, match="mariadb.service does not start"):
        service.start("mariadb.service", host.datadir)
    text = read(server.forbidden()[0]).decode()
    assert "stillpoint restore JOB" in text
    host.restore()
    assert server.forbidden() == [] and service.running_in(host.datadir)


def test_sockets_that_would_start_the_server_are_stopped_and_started_with_it(host: Host, server: FakeServer) -> None:
    server.begin()
    server.sockets = ["mariadb.socket", "mariadb-extra.socket"]
    plan = host.make()
    assert any("mariadb.service and mariadb.socket and mariadb-extra.socket is stopped" in line for line in plan.lines())
    execute(plan, Quiet())
    names = "mariadb.socket mariadb-extra.socket mariadb.service"
    assert server.calls == ["stop -- " + names, "start -- " + names]


def test_where_systemd_can_not_be_told_the_live_data_is_not_touched(host: Host, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.begin()
    monkeypatch.setattr(service, "UNITS", server.units + "/missing")
    with pytest.raises(StillpointError, match="systemd can't be told to leave mariadb.service stopped: No such file"):
        host.restore()
    assert {path: facts(path) for path in host.lived} == host.lived
    assert host.names() == ["app", "mysql"] and journal.pending(state=host.state) is None
    assert service.running_in(host.datadir)


@pytest.mark.parametrize("removable", [True, False])
def test_a_disk_that_is_full_when_the_server_has_stopped_does_not_keep_it_down(
    host: Host, server: FakeServer, monkeypatch: pytest.MonkeyPatch, removable: bool
) -> None:
    server.begin()
    real = service.start

    def full(path: str, *_more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)

    def kept(_targets: Any) -> None:
        raise StillpointError("the copy can't be removed")

    def forbid(unit: str) -> None:
        monkeypatch.setattr(journal, "write", full)
        raise StillpointError("systemd can't be told to leave %s stopped: No space left on device" % unit)

    def start(*args: Any) -> None:
        assert not removable or host.names() == ["app", "mysql"], "the server is to have the room that the copy took"
        real(*args)

    monkeypatch.setattr(service, "forbid", forbid)
    monkeypatch.setattr(service, "start", start)
    if not removable:
        monkeypatch.setattr(copy, "drop", kept)
    with pytest.raises(StillpointError, match="systemd can't be told to leave mariadb.service stopped: No space left on device"):
        host.restore()
    assert service.running_in(host.datadir) and journal.pending(state=host.state) is None
    assert {path: facts(path) for path in host.lived} == host.lived


def test_a_drop_in_that_systemd_does_not_read_is_noticed(host: Host, server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.begin()
    monkeypatch.setattr(server, "forbidden", list)
    with pytest.raises(StillpointError, match="systemd does not heed .*/mariadb.service.d/stillpoint-restore.conf"):
        host.restore()
    assert {path: facts(path) for path in host.lived} == host.lived
    assert os.listdir(server.units) == []


# -- names that are taken meanwhile


@needs_root
@pytest.mark.parametrize("number", range(1, 6))
def test_what_a_server_that_was_started_by_hand_has_written_in_between_does_not_stop_the_restore(mounted: Host, number: int) -> None:
    kill_before(mounted, "rename_to_free_name", number, parts="database")
    for name in ("ibdata1", "created since", "shop"):
        path = os.path.join(mounted.datadir, name)
        if not os.path.lexists(path):
            write(path, b"in between")
    done = mounted.restore(parts="database")
    names = {path: each for path, each in facts(mounted.datadir).items() if b"stillpoint" not in path and path != b""}
    wanted = {path: each for path, each in mounted.saved[mounted.datadir].items() if path != b""}
    later = [path for path in done.replaced if path.endswith(".later")]
    assert {path: each for path, each in names.items() if path in wanted} == wanted
    assert read(done.replaced[0] + "/ibdata1") == b"new!" * 1000
    found = [os.path.join(directory, name) for path in later for directory, _names, files in os.walk(path) for name in files]
    assert all(read(path) == b"in between" for path in found)
    if number in (2, 5):  # live data goes first; then the new comes
        assert found
    kept = replaced("job", state=mounted.state)
    assert set(done.replaced) == {each.path for each in kept}


def test_a_directory_that_something_made_where_the_live_data_was_does_not_stop_the_restore(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(_one: str, _other: str) -> None:
        raise durable.NotSupported

    monkeypatch.setattr(durable, "exchange", not_here)
    kill_before(host, "rename_to_free_name", 2)
    assert not os.path.exists(host.datadir)
    os.mkdir(host.datadir)  # as tmpfiles.d may do at a boot
    write(host.datadir + "/in between")
    done = host.restore()
    assert facts(host.datadir) == host.saved[host.datadir]
    assert facts(done.replaced[0]) == host.lived[host.datadir]
    assert os.path.exists(done.replaced[1] + "/mysql/in between")


def test_a_name_for_what_is_kept_that_somebody_has_taken_is_left_to_them(host: Host) -> None:
    interrupted(host)
    (held,) = [target.kept for target in journal.read(host.state).targets if target.path == host.datadir]
    os.mkdir(held)
    done = host.restore()
    assert done.replaced[0] == held + ".2" and facts(held + ".2") == host.lived[host.datadir]
    assert held not in [each.path for each in replaced(state=host.state)]


# -- undone


def every_kill_undone(host: Host, parts: str = "all") -> int:
    """Kill a restore at each of its steps, undo it, and look; return how many there were to undo."""
    halves = [path for path in (host.datadir, host.app) if parts == "all" or path == host.datadir]
    step = undone = 0
    template = host.root + "/live.template"
    subprocess.run(["cp", "-a", host.root + "/live", template], check=True)
    while killed_at(step, lambda: host.restore(parts=parts)):
        if journal.pending(state=host.state):
            undone += 1
            undo.plan("job", state=host.state).execute(Quiet())
            assert replaced(state=host.state) == []
        else:
            host.restore(parts=parts)
            discard(replaced(state=host.state), Quiet(), state=host.state)
            for path in halves:
                empty(path)
            subprocess.run(["cp", "-a", template + "/.", host.root + "/live"], check=True)
        for path in halves:
            assert in_place(path, host.lived[path]), "killed at step %d" % step
        left = [name for _path, names, files in os.walk(host.root + "/live") for name in names + files if "stillpoint-" in name or "replaced-" in name]
        assert left == [], "killed at step %d" % step
        assert journal.pending(state=host.state) is None
        step += 1
    return undone


def test_a_restore_that_was_interrupted_anywhere_can_be_undone(host: Host) -> None:
    assert every_kill_undone(host) >= 5


def test_so_it_is_where_two_names_can_not_change_places(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_here(_one: str, _other: str) -> None:
        raise durable.NotSupported

    monkeypatch.setattr(durable, "exchange", not_here)
    assert every_kill_undone(host, "database") >= 4


@needs_root
def test_so_it_is_in_a_mount_point(mounted: Host) -> None:
    assert every_kill_undone(mounted, "database") >= 8


@needs_root
@pytest.mark.parametrize("number", [2, 3, 5])
def test_an_undoing_that_is_killed_itself_is_finished_by_the_same_command(mounted: Host, number: int) -> None:
    step = 0
    while True:
        kill_before(mounted, "rename_to_free_name", number, parts="database")
        more = killed_at(step, lambda: undo.plan("job", state=mounted.state).execute(Quiet()))
        if more and journal.pending(state=mounted.state):
            if journal.pending(state=mounted.state).phase == journal.UNDOING:
                with pytest.raises(UsageError, match="then undone half way: finish undoing it, with stillpoint undo job"):
                    mounted.make(parts="database")
            undo.plan("job", state=mounted.state).execute(Quiet())
        assert in_place(mounted.datadir, mounted.lived[mounted.datadir]), "killed at step %d" % step
        if not more:
            break
        step += 1
    assert step >= 5


def test_undoing_starts_the_server_and_takes_back_that_it_may_not_start(host: Host, server: FakeServer) -> None:
    server.begin()
    interrupted(host)
    done = undo.plan("job", state=host.state).execute(Quiet())
    assert {path: facts(path) for path in host.lived} == host.lived
    assert server.forbidden() == [] and service.running_in(host.datadir)
    assert (done.undone, done.service) == ([host.datadir, host.app], "mariadb.service")


def test_nothing_is_undone_where_nothing_was_interrupted(host: Host) -> None:
    with pytest.raises(UsageError, match="no restore was interrupted on this host"):
        undo.plan("job", state=host.state).execute(Quiet())
    host.restore()
    with pytest.raises(UsageError, match=r"the restore of job has ended, .* what it replaced is in /.*replaced-.*, to be moved back with the server stopped"):
        undo.plan("job", state=host.state)


def test_prepared_data_that_is_gone_can_be_undone(host: Host) -> None:
    interrupted(host)
    shutil.rmtree(os.path.dirname(host.app) + "/.app.stillpoint-new")
    with pytest.raises(StillpointError, match="can't be finished: undo it, with stillpoint undo"):
        host.restore()
    undo.plan("job", state=host.state).execute(Quiet())
    assert {path: facts(path) for path in host.lived} == host.lived


# -- what was asked for


def asked(host: Host, **moment: Any) -> planning.InPlacePlan:
    return planning.make(host.directory.find(None), state=host.state, **moment)


def test_a_moment_that_is_asked_for_is_that_of_the_interrupted_restore_or_refused(host: Host) -> None:
    moment = {"--until": "2026-11-22T14:03:07Z"}
    real = host.make
    host.make = lambda **_more: planning.make(host.directory.find(None), moment=moment, state=host.state)  # type: ignore[method-assign]
    interrupted(host)
    host.make = real  # type: ignore[method-assign]
    for other in (None, {"--until": "2026-11-22T14:03:08Z"}, {"--before-gtid": "0-1-5"}):
        way = "finish it, with stillpoint restore job 2026-11-22T02-00-05Z --from-host host --until 2026-11-22T14:03:07Z, or undo it"
        with pytest.raises(UsageError, match="this asks for another one: " + way):
            asked(host, moment=other)
    assert asked(host, moment=moment).resumes


def test_a_moment_is_not_forgotten_over_a_restore_without_one(host: Host) -> None:
    interrupted(host)
    with pytest.raises(UsageError, match="this asks for another one"):
        asked(host, moment={"--until": "2026-11-22T14:03:07Z"})


# -- archives of binary logs


def archive_of(host: Host, basename: str) -> Archive:
    archive = Archive(host.directory.path)
    os.makedirs(archive.path, exist_ok=True)
    archive.begin("first", "", os.path.basename(basename) + ".000001", {"flavour": "mariadb", "version": "10.11", "uuid": None, "basename": basename})
    return archive


def logging_to(host: Host, basename: str, index: str) -> Dict[str, Any]:
    return {"settings": {"log_bin": basename, "log_bin_index": index}}


def test_files_that_are_put_back_in_two_runs_say_nothing_of_the_database(host: Host) -> None:
    archive = archive_of(host, host.datadir + "/bin")
    host.back_up(hours=1, **logging_to(host, host.datadir + "/bin", host.datadir + "/bin.index"))

    def make(**_more: Any) -> planning.InPlacePlan:
        return planning.make(host.directory.find(None), parts="files", archives=[archive], state=host.state)

    host.make = make  # type: ignore[method-assign]
    interrupted(host)
    execute(make(), Quiet())
    assert archive.restored() is None
    execute(planning.make(host.directory.find(None), archives=[archive], state=host.state), Quiet())
    assert archive.restored() is not None


@needs_root
def test_a_full_repository_does_not_keep_the_server_down(host: Host, server: FakeServer) -> None:
    server.begin()
    generation = host.back_up(hours=1, **logging_to(host, host.datadir + "/bin", host.datadir + "/bin.index"))
    for disk in small_disk(host.directory.path + "/binlog", "64k"):
        archive = archive_of(host, host.datadir + "/bin")
        with pytest.raises(OSError, match="No space left"), open(disk + "/filled", "wb") as file:
            file.write(bytes(1 << 20))
        reporter = Quiet()
        execute(planning.make(generation, archives=[archive], state=host.state), reporter)
        assert service.running_in(host.datadir)
        assert any("can't be told that the data was replaced (No space left on device)" in warning for warning in reporter.warnings)


class Logging:
    """The binary logs of the server and of another one in the same directory."""

    def __init__(self, host: Host, index: str = "bin.index") -> None:
        self.directory = host.root + "/live/log"
        os.makedirs(self.directory, exist_ok=True)
        self.index = os.path.join(self.directory, index)
        for name in ("bin.000001", "bin.000002", "bin.000002.idx", "bin.state", "bin.000007", "bin-of-another.000001", "bin-of-another.index"):
            write(os.path.join(self.directory, name), name.encode())
        write(self.index, ("%s/bin.000001\n%s/bin.000002\n" % (self.directory, self.directory)).encode())
        self.facts = logging_to(host, self.directory + "/bin", self.index)
        self.own = {"bin.000001", "bin.000002", "bin.000002.idx", "bin.state", os.path.basename(self.index)}
        self.others = {"bin.000007", "bin-of-another.000001", "bin-of-another.index"}

    def left(self) -> "set[str]":
        return {name for name in os.listdir(self.directory) if "replaced-" not in name}


@pytest.mark.parametrize("index", ["bin.index", "named-otherwise"])
def test_the_logs_that_the_servers_own_index_names_are_set_aside_with_it_and_no_others(host: Host, index: str) -> None:
    logs = Logging(host, index)
    done = execute(planning.make(host.back_up(hours=1, **logs.facts), state=host.state), Quiet())
    assert logs.left() == logs.others
    assert set(os.listdir(done.replaced[-1])) == logs.own


def test_an_index_in_a_directory_of_its_own_is_set_aside_there(host: Host) -> None:
    os.makedirs(host.root + "/live/index")
    logs = Logging(host, host.root + "/live/index/bin")
    done = execute(planning.make(host.back_up(hours=1, **logs.facts), state=host.state), Quiet())
    assert logs.left() == logs.others
    assert not os.path.exists(logs.index) and done.replaced[-1].startswith(logs.index + ".replaced-")


def test_an_index_that_would_come_back_without_its_logs_does_not(host: Host) -> None:
    logs = Logging(host, host.datadir + "/bin.index")
    execute(planning.make(host.back_up(hours=1, **logs.facts), state=host.state), Quiet())
    assert logs.left() == logs.others
    assert not os.path.exists(host.datadir + "/bin.index") and os.path.exists(host.datadir + "/ibdata1")


def test_logs_that_another_server_writes_are_left_to_it_and_its_archive_is_told_nothing(host: Host, server: FakeServer) -> None:
    logs = Logging(host)
    generation = host.back_up(hours=1, **logs.facts)
    archive = archive_of(host, logs.directory + "/bin")
    elsewhere = host.root + "/elsewhere"
    os.mkdir(elsewhere)
    with open(logs.index, "rb") as index:
        other = subprocess.Popen([server.program, "1000"], cwd=elsewhere, stdin=index)
    while not service.holders(logs.index):  # it has not got its name yet
        time.sleep(0.01)
    try:
        before = logs.left()
        execute(planning.make(generation, archives=[archive], state=host.state), Quiet())
        assert logs.left() == before
        assert archive.restored() is None
    finally:
        other.kill()
        other.wait()


def test_archives_of_other_servers_are_told_nothing(host: Host) -> None:
    logs = Logging(host)
    archive = archive_of(host, logs.directory + "/bin-of-another")
    execute(planning.make(host.back_up(hours=1, **logs.facts), archives=[archive], state=host.state), Quiet())
    assert archive.restored() is None
    assert logs.left() == logs.others


@pytest.mark.usefixtures("server")
def test_what_a_server_has_logged_since_the_exchange_is_not_taken_for_what_was_replaced(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_unit", lambda *_args: "mariadb.service")
    logs = Logging(host)
    generation = host.back_up(hours=1, **logs.facts)
    with monkeypatch.context() as patch:
        patch.setattr(service, "start", stopped)
        with pytest.raises(Stopped):
            execute(planning.make(generation, state=host.state), Quiet())
    (kept,) = [path for path in map(str, os.listdir(logs.directory)) if "replaced-" in path]
    before = facts(os.path.join(logs.directory, kept))
    write(logs.directory + "/bin.000001", b"of the restored server")
    write(logs.index, b"%s/bin.000001\n" % logs.directory.encode())
    done = execute(planning.make(generation, state=host.state), Quiet())
    assert read(logs.directory + "/bin.000001") == b"of the restored server"
    assert facts(os.path.join(logs.directory, kept)) == before
    assert done.replaced[-1] == os.path.join(logs.directory, kept)
    assert journal.pending(state=host.state) is None and service.running_in(host.datadir)


def stopped(*_args: Any) -> None:
    raise Stopped("SIGTERM")


def test_logs_that_were_set_aside_come_back_when_the_restore_is_undone(host: Host) -> None:
    logs = Logging(host, "named-otherwise")
    archive = archive_of(host, logs.directory + "/bin")
    generation = host.back_up(hours=1, **logs.facts)
    before = facts(logs.directory)
    real = exchange.directories
    seen: List[Callable[..., None]] = [real]

    def fail(*_args: Any) -> None:
        raise OSError(5, os.strerror(5), "disk")

    exchange.directories = fail
    try:
        with pytest.raises(StillpointError, match="or undo it"):
            execute(planning.make(generation, archives=[archive], state=host.state), Quiet())
    finally:
        exchange.directories = seen[0]
    assert logs.left() == logs.others and archive.restored() is not None
    undo.plan("job", state=host.state).execute(Quiet())
    assert {name: each for name, each in facts(logs.directory).items() if name != b""} == {name: each for name, each in before.items() if name != b""}
    assert archive.restored() is None
