# SPDX-License-Identifier: GPL-3.0-or-later
"""Generations through a copy and back, with each restic and a real REST server: equal to the last attribute, whenever anything is killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Iterator, List, Optional

import pytest
from _core.copies import destination as destinations
from _core.copies import known, restic, secrets, send
from _core.copies.destination import Destination, OtherRepository
from _core.copies.fetch import Fetched, fetch
from _core.copies.prune import prune
from _core.copies.restic import Restic
from _core.copies.verify import CopyVerdict, verify
from _core.host.errors import StillpointError, UsageError
from _core.host.steps import listening
from _core.job.options import Copy, Keep
from _core.repository import manifest
from _core.repository.generation import Generation
from _core.repository.job_directory import JobDirectory
from rest_server import RESTICS, RestServer, needs_restic, rest_server
from trees import Quiet, awkward, back_up, facts, tree, write
from trees import job as job_directory

pytestmark = [*needs_restic, pytest.mark.usefixtures("own_run_directory")]


@pytest.fixture(scope="module")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    with rest_server(tmp_path_factory.mktemp("rest")) as running:
        running.initialize("template")
        yield running


@pytest.fixture
def server(one_server: RestServer) -> Iterator[RestServer]:
    """A server with an empty repository."""
    shutil.copytree(one_server.path / "template", one_server.path / "db1")
    yield one_server
    shutil.rmtree(one_server.path / "db1")


@dataclass
class World:
    """A job whose generations have a copy."""

    directory: JobDirectory
    destination: Destination
    copy: Copy
    source: Path

    def back_up(self, hours: float) -> Generation:
        return back_up(self.directory, tree(str(self.source)), hours=hours)

    def send(self) -> List[send.Sent]:
        return send.send_missing(self.destination, self.copy, self.directory.generations(), Quiet())

    def there(self) -> List[str]:
        return [each.name for each in self.destination.list()]

    def lose(self) -> None:
        """Lose the machine: all of its backups, and what it knew of the copy."""
        shutil.rmtree(self.directory.path)
        shutil.rmtree(known.STATE, ignore_errors=True)

    def verify(self) -> CopyVerdict:
        return verify(self.destination, self.destination.list()[0], None, Quiet())

    def fetch(self, number: int = 0) -> Fetched:
        return fetch(self.destination, self.destination.list()[number], self.directory, Quiet())


@pytest.fixture
def world(server: RestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> World:
    monkeypatch.setattr(known, "STATE", str(tmp_path / "state"))
    program = RESTICS[getattr(request, "param", "newest")]
    files = secrets.read(server.secrets())
    destination = Destination(Restic(server.url(), files, program, str(tmp_path / "cache")), "db1", "job", "vault")
    source = tmp_path / "source"
    source.mkdir()
    write(str(source / "page"), os.urandom(200_000))
    return World(job_directory(tmp_path / "repository"), destination, Copy("vault", server.url(), files.path), source)


each_version = pytest.mark.parametrize("world", list(RESTICS), indirect=True)


@each_version
def test_a_tree_that_went_to_a_copy_comes_back_equal_to_the_last_attribute(world: World) -> None:
    shutil.rmtree(world.source)
    awkward(str(world.source))
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(world.source / "open/sock"))
    os.chown(world.source / "open/sock", 12, 34)
    os.chmod(world.source / "open/sock", 0o642)
    os.symlink(b"to-\xff\xfe", os.path.join(os.fsencode(world.source), b"open/not-utf8"))
    os.lchown(world.source / "open/not-utf8", 5, 6)
    os.utime(world.source / "open", ns=(1, 1_500_000_000_987_654_321))
    generation = world.back_up(0)
    before, name = facts(generation.path + "/files"), generation.name
    blocks = os.stat(generation.path + "/files/tree/sparse").st_blocks
    assert [each.generation for each in world.send()] == [name]
    world.lose()
    done = world.fetch()
    assert facts(done.generation.path + "/files") == before
    assert os.stat(done.generation.path + "/files/tree/sparse").st_blocks < blocks + 400  # of 5,860; restic sees holes of a megabyte alone
    assert done.generation.summary["generation"] == name and os.readlink(world.directory.path + "/latest") == name


@each_version
def test_what_is_not_there_is_sent_newest_first_and_nothing_twice(world: World) -> None:
    first, second = world.back_up(0), world.back_up(1)
    assert [each.generation for each in world.send()] == [second.name, first.name]
    assert world.send() == []
    write(str(world.source / "small"), b"new")
    third = world.back_up(2)
    (sent,) = world.send()
    assert sent.generation == third.name and sent.added < 50_000  # of 200,000 that did not change
    assert world.there() == [third.name, second.name, first.name]
    snapshot = world.destination.restic.json("snapshots", "--tag", "generation=" + third.name)[0]
    assert snapshot.get("summary", {}).get("files_unmodified", 1) == 1  # newer versions tell: what did not change was not read
    assert snapshot["hostname"] == "db1" and snapshot["time"].startswith("2026-11-22T04:00:05") and snapshot["paths"][0].endswith("/point")
    digest = send.manifest_sha256(third.path)
    assert set(snapshot["tags"]) == {
        "stillpoint", "job=job", "generation=" + third.name, "state=good", "bytes=200003", "files=2", "manifest=" + digest,
    }  # fmt: skip


def test_a_kill_at_any_step_of_sending_leaves_nothing_that_is_listed_and_not_whole(world: World) -> None:
    world.back_up(0)
    world.destination.look()
    for hours, step in enumerate(("progress", "sent", "recorded"), 1):
        write(str(world.source / step), os.urandom(3_000_000))
        generation = world.back_up(hours)
        world.copy = world.copy._replace(bwlimit="1M" if step == "progress" else None)  # slow enough to say how far it is
        _killed_at(step, world.send)
        world.copy = world.copy._replace(bwlimit=None)
        for name in world.there():
            assert name == generation.name or name in [each.name for each in world.directory.generations()]
        world.send()
        assert generation.name in world.there()
        assert len(world.destination.restic.json("snapshots", "--tag", "generation=" + generation.name)) == 1
    world.lose()
    for number in range(4):
        assert world.fetch(number).generation.state == "good"


def test_a_kill_at_any_step_of_fetching_publishes_nothing_and_the_next_one_does(world: World) -> None:
    name = world.back_up(0).name
    world.send()
    world.lose()
    for step in ("fetch", "fetched", "compare", "rename"):
        _killed_at(step, world.fetch)
        assert world.directory.names() == []
    _killed_at("renamed", world.fetch)
    assert world.directory.names() == [name]  # it is whole by then
    assert world.fetch().generation.name == name
    with world.directory.lock():
        world.directory.clean()
    assert sorted(os.listdir(world.directory.path)) == [".lock", name, "latest"]


def _killed_at(step: str, action: Any) -> None:
    """Do something in a process of its own that is killed when it reaches a step, and with it the restic that it has started."""

    def kill(reached: str, _about: str) -> None:
        if reached.split(" ")[0] == step:
            os.kill(os.getpid(), signal.SIGKILL)

    class Steps(Quiet):
        def stage(self, name: str) -> None:
            kill(name, "")

        def progress(self, done: int, total: Optional[int] = None) -> None:
            kill("progress", "")

    child = os.fork()
    if child == 0:
        with pytest.MonkeyPatch.context() as patch, listening(kill):
            patch.setitem(World.send.__globals__, "Quiet", Steps)
            action()
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1]), "it did not come to %s" % step


@each_version
def test_a_copy_that_can_not_be_reached_or_is_full_is_tried_again_and_goes_on(world: World, server: RestServer) -> None:
    name = world.back_up(0).name
    server.stop()
    try:
        with pytest.raises(restic.Offline) as offline:
            world.send()
        server.most_bytes = 100_000
        server.start()
        began = time.monotonic()
        with pytest.raises(restic.Full) as full:
            world.send()
        assert time.monotonic() - began < restic.PATIENCE_SENDING / 2  # at once, as no patience makes room
    finally:
        server.stop()
        server.most_bytes = None
        server.start()
    assert offline.value.exit_code == full.value.exit_code == 75
    assert world.there() == []
    assert [each.generation for each in world.send()] == [name]


def test_another_repository_behind_the_address_is_refused_and_a_lost_one_never_made_anew(world: World, server: RestServer) -> None:
    world.back_up(0)
    world.send()
    (server.path / "db1").rename(server.path / "put-aside")
    world.back_up(1)
    with pytest.raises(restic.Unavailable, match="which has been there, is not") as gone:
        world.send()
    assert gone.value.exit_code == 75 and not (server.path / "db1").exists()
    with pytest.raises(UsageError, match="a new one must not hide"):
        world.destination.init()
    environment = {"RESTIC_PASSWORD": "repository-secret", "HOME": "/nonexistent"}
    subprocess.run([RESTICS["newest"], "init", "--repo", str(server.path / "db1")], env=environment, check=True)
    with pytest.raises(OtherRepository, match="another repository is at"):
        world.send()
    assert not os.listdir(server.path / "db1" / "snapshots")
    shutil.rmtree(server.path / "db1")
    (server.path / "put-aside").rename(server.path / "db1")
    assert len(world.send()) == 1


def test_a_repository_is_made_when_asked_for_alone(world: World, tmp_path: Path) -> None:
    disk = replace(world.destination.restic, url=str(tmp_path / "disk"))
    destination = Destination(disk, "db1", "job", "disk")
    world.back_up(0)
    with pytest.raises(restic.NoRepository, match="stillpoint copy job --copy disk --init"):
        send.send_missing(destination, world.copy, world.directory.generations(), Quiet())
    assert not (tmp_path / "disk").exists()
    destination.init()
    assert len(send.send_missing(destination, world.copy, world.directory.generations(), Quiet())) == 1


@pytest.mark.parametrize("forged", ["contents", "manifest", "name"])
def test_what_is_not_what_its_manifest_says_is_not_put_here(world: World, forged: str, tmp_path: Path) -> None:
    generation = world.back_up(0)
    other = tmp_path / "forged"
    shutil.copytree(generation.path, other, symlinks=True)
    if forged == "contents":
        data = (other / "files/tree/page").read_bytes()
        times = os.stat(other / "files/tree/page").st_mtime_ns
        (other / "files/tree/page").write_bytes(b"x" + data[1:])
        os.utime(other / "files/tree/page", ns=(times, times))
    elif forged == "manifest":
        (other / "manifest.json").write_bytes((other / "manifest.json").read_bytes().replace(b'"job": "job"', b'"job": "jab"'))
    name = "2026-11-29T02-00-05Z" if forged == "name" else generation.name
    tags = [tag.replace(generation.name, name) for tag in destinations.tags(generation, "job", send.manifest_sha256(generation.path))]
    words = [word for tag in tags for word in ("--tag", tag)]
    world.destination.restic.run("backup", ".", "--host", "db1", *words, cwd=str(other))
    world.lose()
    with pytest.raises(StillpointError, match="is not what its manifest says|has another manifest than its tags say|holds the backup"):
        world.fetch()
    assert world.directory.names() == [] and not [each for each in os.listdir(world.directory.path) if "partial" in each]


@pytest.mark.parametrize("path", [b"files/door/sock", b"../sock", b"files/../../sock", b"/sock"])
def test_a_manifest_that_would_have_something_made_elsewhere_is_refused(world: World, tmp_path: Path, path: bytes) -> None:
    generation = world.back_up(0)
    other, outside = tmp_path / "forged", tmp_path / "outside"
    shutil.copytree(generation.path, other, symlinks=True)
    outside.mkdir()
    (other / "files/door").symlink_to(outside)
    text = (other / "manifest.json").read_bytes()
    head, _files = text.split(b'"files": [\n')
    entries = [manifest.Entry(path, "socket", 0, 0, 0o666, 0, 0)]
    text = head + b'"files": [\n' + b",\n".join(manifest._line(entry) for entry in entries) + b"\n],\n"
    (other / "manifest.json").write_bytes(text + b'"sha256": "%s"\n}\n' % hashlib.sha256(text).hexdigest().encode())
    words = [word for tag in destinations.tags(generation, "job", send.manifest_sha256(str(other))) for word in ("--tag", tag)]
    world.destination.restic.run("backup", ".", "--host", "db1", *words, cwd=str(other))
    world.lose()
    before = sorted(tmp_path.rglob("sock"))
    with pytest.raises(StillpointError, match="can't be put right|names what lies outside"):
        world.fetch()
    assert sorted(tmp_path.rglob("sock")) == before == [] and world.directory.names() == [] and not os.path.lexists("/sock")


def test_a_snapshot_of_anybody_else_is_not_taken_for_a_generation(world: World) -> None:
    said = ["stillpoint", "job=job", "generation=../../etc", "state=good", "bytes=1", "files=1", "manifest=" + "0" * 64]
    world.destination.restic.run("backup", ".", "--host", "db1", *[word for tag in said for word in ("--tag", tag)], cwd=str(world.source))
    assert world.there() == []


def test_a_generation_that_is_removed_meanwhile_is_left_out_and_one_that_is_sent_stays(world: World) -> None:
    first, second = world.back_up(0), world.back_up(1)
    removed = []

    def remove(step: str, about: str) -> None:
        if step == "sent" and about == second.name:
            with world.directory.lock():
                removed.append((world.directory.remove(second), world.directory.remove(first)))

    with listening(remove):
        assert [each.generation for each in world.send()] == [second.name]
    assert removed == [(False, True)]
    assert json.loads(Path(known.path_of("job", "vault")).read_text())["generations"][0]["name"] == second.name


@each_version
def test_a_copy_is_verified_where_it_lies(world: World, server: RestServer) -> None:
    shutil.rmtree(world.source)
    awkward(str(world.source))
    world.back_up(0)
    world.send()
    found = world.verify()
    assert found.ok and found.files == 24, found.faults
    packs = sorted((server.path / "db1" / "data").glob("*/*"), key=lambda path: path.stat().st_size)
    damaged = bytearray(packs[-1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    packs[-1].chmod(0o600)
    packs[-1].write_bytes(damaged)
    found = world.verify()
    assert not found.ok and any(packs[-1].name[:8] in fault or "pack" in fault for fault in found.faults)


def test_a_copy_that_lists_something_else_than_its_manifest_does_not_pass(world: World, tmp_path: Path) -> None:
    generation = world.back_up(0)
    other = tmp_path / "forged"
    shutil.copytree(generation.path, other, symlinks=True)
    (other / "files/tree/page").write_bytes(b"shorter")
    (other / "files/tree/more").write_bytes(b"")
    words = [word for tag in destinations.tags(generation, "job", send.manifest_sha256(generation.path)) for word in ("--tag", tag)]
    world.destination.restic.run("backup", ".", "--host", "db1", *words, cwd=str(other))
    assert set(world.verify().faults) == {"files/tree/more: not in the manifest", "files/tree/page: has 7 bytes, had 200000"}


def test_a_copy_with_a_retention_keeps_what_that_says_whenever_pruning_is_killed(world: World, tmp_path: Path) -> None:
    disk = Destination(replace(world.destination.restic, url=str(tmp_path / "disk")), "db1", "job", "disk")
    copy = Copy("disk", str(tmp_path / "disk"), world.copy.secrets, keep=Keep(last=2))
    disk.init()
    names = []
    for hours in range(3):
        write(str(world.source / "page"), os.urandom(3_000_000))
        names.append(world.back_up(hours).name)
        send.send_missing(disk, copy, world.directory.generations(), Quiet())
    before = _bytes(tmp_path / "disk")
    _killed_at("forgotten", lambda: prune(disk, copy.keep, Quiet()))
    assert [each.name for each in disk.list()] == names[:0:-1] and _bytes(tmp_path / "disk") > before - 1_000_000
    prune(disk, copy.keep, Quiet())
    assert _bytes(tmp_path / "disk") < before - 2_000_000 and not disk.known.pruning
    assert send.send_missing(disk, copy, world.directory.generations(), Quiet()) == [] and disk.known.behind(world.directory.generations(), copy.keep) == []
    world.lose()
    for each in disk.list():
        assert fetch(disk, each, world.directory, Quiet()).generation.state == "good"
    disk.restic.run("check", "--read-data")


def test_a_copy_with_another_manifest_than_its_tags_say_does_not_pass(world: World) -> None:
    generation = world.back_up(0)
    words = [word for tag in destinations.tags(generation, "job", "0" * 64) for word in ("--tag", tag)]
    world.destination.restic.run("backup", ".", "--host", "db1", *words, cwd=generation.path)
    assert world.verify().faults == ("the manifest is another one than its tags say",)


def _bytes(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
