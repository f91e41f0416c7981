# SPDX-License-Identifier: GPL-3.0-or-later
"""A host that was broken into: it has its HTTP password and its repository's, restic, and a program that writes restic's format as it likes.

After each of these attacks every copy that has to be there can be restored and is what its manifest says, other hosts' repositories are as they
were, and the keeper does its work or raises an alarm that says what to do; and once that is done, the keeper does its work.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import forge
import pytest
from _core.host.errors import StillpointError
from _core.vault import keeper
from _core.vault.keeper import Round
from vault_server import Client, Vault, needs_vault, vault

pytestmark = needs_vault

FILES = {"files/srv/a": b"one" * 1000, "mysql/ibdata1": b"\0".join(b"%d" % number for number in range(20000))}
LATE = "2026-11-20T02-00-05Z"


class Scene:
    """A vault with a host that sends for long already, and another one.

    :ivar ids: of its copies: two that the retention no longer keeps, and one that it does
    """

    def __init__(self, made: Vault) -> None:
        self.made = made
        self._first = made.add("victim")
        self.ids = []
        for number, age in ((1, 1), (2, 48), (3, 1)):
            self.ids.append(self._first.send("2026-11-%02dT02-00-05Z" % number, {**FILES, "files/own": b"%d" % number}))
            keeper.check(made.directory("victim"))
            made.age(age, "victim")
        self.other = made.add("other")
        self.others = self.other.send("2026-11-01T02-00-05Z", FILES)
        keeper.prune(made.directory("other"))

    def clone(self) -> Client:
        client = self.made.add("host%03d" % len(self.made.secrets))
        old, new = self.made.directory("victim"), self.made.directory(client.host)
        subprocess.run(["rm", "-rf", new.served], check=True)
        for source, target in ((old.served, new.served), (old.ledger, new.ledger), (old.state, new.state)):
            subprocess.run(["cp", "-a", source, target], check=True)
        return client


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with vault(tmp_path_factory.mktemp("v")) as made:
        made.configure(keep={"within": "10d"})
        yield Scene(made)


def fingerprint(top: str) -> List[Tuple[str, int, int, float]]:
    """Return what tells whether anything below a directory has changed."""
    found = [path for path in Path(top).rglob("*") if not path.is_dir()]
    return sorted((str(path), path.lstat().st_size, path.lstat().st_ino, path.lstat().st_mtime) for path in found)


# -- what the server refuses: nothing is different afterwards


def one(client: Client, kind: str) -> str:
    return next(each.id for each in client.vault.directory(client.host).files()[0] if each.kind == kind)


def key_of(client: Client) -> str:
    return os.listdir(os.path.join(client.vault.directory(client.host).path, "keys"))[0]


REFUSED: Dict[str, Callable[[Client], Tuple[Any, ...]]] = {
    "delete a snapshot": lambda client: ("DELETE", "snapshots/" + one(client, "snapshots")),
    "delete a pack": lambda client: ("DELETE", "data/" + one(client, "data")),
    "delete an index": lambda client: ("DELETE", "index/" + one(client, "index")),
    "delete the config": lambda client: ("DELETE", "config"),
    "delete a key": lambda client: ("DELETE", "keys/" + key_of(client)),
    "delete the repository": lambda client: ("DELETE", ""),
    "delete by another method": lambda client: ("POST", "snapshots/" + one(client, "snapshots"), b"", {"X-HTTP-Method-Override": "DELETE"}),
    "delete by way of locks": lambda client: ("DELETE", "locks/../snapshots/" + one(client, "snapshots")),
    "delete by way of locks, hidden": lambda client: ("DELETE", "locks/..%2fsnapshots%2f" + one(client, "snapshots")),
    "overwrite the config": lambda client: ("POST", "config", b"{}"),
    "overwrite a pack": lambda client: ("POST", "data/" + one(client, "data"), b"nothing"),
    "overwrite a snapshot": lambda client: ("POST", "snapshots/" + one(client, "snapshots"), b"nothing"),
    "overwrite a key": lambda client: ("POST", "keys/" + key_of(client), b"nothing"),
    "add a key": lambda client: ("POST", "keys/" + forge.name(b"{}"), b"{}"),
    "a name that is no checksum": lambda client: ("POST", "data/" + "0" * 64, b"something"),
    "a name that leads out": lambda client: ("POST", "data/../../other/config", b"{}"),
    "a name that leads out, hidden": lambda client: ("POST", "data/..%2f..%2f..%2fowned", b"{}"),
    "a name that leads out, twice hidden": lambda client: ("POST", "data/%252e%252e%252fowned", b"{}"),
    "a name with a NUL": lambda client: ("POST", "data/a%00b", b"{}"),
    "a directory that is none of restic's": lambda client: ("POST", "trusted/" + forge.name(b"{}"), b"{}"),
    "read what the keeper trusts": lambda client: ("GET", "trusted/packs"),
    "read another host's config": lambda client: ("GET", "/other/config"),
    "read another host's, hidden": lambda client: ("GET", "/%s/%%2e%%2e/other/config" % client.host),
    "send to another host": lambda client: ("POST", "/other/data/" + forge.name(b"x"), b"x"),
    "make its own repository anew": lambda client: ("POST", "?create=true"),
    "make another host's anew": lambda client: ("POST", "/other/?create=true"),
    "make a repository that nobody knows": lambda client: ("POST", "/unknown/?create=true"),
    "make a repository in its own": lambda client: ("POST", "sub/?create=true"),
    "make one of all": lambda client: ("POST", "/?create=true"),
    "PUT": lambda client: ("PUT", "data/" + forge.name(b"x"), b"x"),
    "MOVE": lambda client: ("MOVE", "snapshots/" + one(client, "snapshots"), b"", {"Destination": "/other/x"}),
    "PROPFIND": lambda client: ("PROPFIND", ""),
}


@pytest.fixture(scope="module")
def thief(scene: Scene) -> Client:
    return scene.clone()


@pytest.mark.parametrize("attack", REFUSED)
def test_the_server_refuses(scene: Scene, thief: Client, attack: str) -> None:
    method, path, *rest = REFUSED[attack](thief)
    before = fingerprint(str(scene.made.top / "srv"))
    body, headers = (*rest, None, None)[:2]
    status, _answer = thief.request(method, path, body, **(headers or {}))
    assert fingerprint(str(scene.made.top / "srv")) == before
    assert status >= 300 or path == "?create=true", status  # which is done already, and does nothing


# -- what it takes


def forged_pack(client: Client, kind: int, text: bytes = b"not what it was") -> bytes:
    """Return a pack that claims to have a blob of an old copy."""
    listed = [json.loads(client.restic("cat", "index", each, "--no-lock").stdout) for each in indexes(client)]
    word = ("data", "tree")[kind]
    blob = next(blob["id"] for found in listed for each in found["packs"] for blob in each["blobs"] if blob["type"] == word)
    return forge.pack(client.key, [forge.Blob(kind, blob, text)])[0]


def indexes(client: Client) -> List[str]:
    return [each.id for each in client.vault.directory(client.host).files()[0] if each.kind == "index"]


def packs(client: Client) -> List[Dict[str, Any]]:
    return [each for name in indexes(client) for each in json.loads(client.restic("cat", "index", name, "--no-lock").stdout)["packs"]]


def swapped_index(client: Client) -> bytes:
    """Return an index that has each blob in another one's place."""
    blobs = [blob for each in packs(client) for blob in each["blobs"] if blob["type"] == "data"]
    places = [{key: blob[key] for key in blob if key != "id"} for blob in blobs]
    moved = [{"id": blob["id"], **place} for blob, place in zip(blobs, places[1:] + places[:1])]
    return forge.index(client.key, {packs(client)[0]["id"]: moved})


def superseding_index(client: Client) -> bytes:
    return client.key.sealed(json.dumps({"supersedes": indexes(client), "packs": []}).encode())


def snapshot_of(client: Client, *nodes: Dict[str, Any], **fields: Any) -> None:
    """Send a snapshot of one directory with these nodes."""
    blob = forge.Blob.honest(forge.TREE, forge.tree(*nodes))
    content, listed = forge.pack(client.key, [blob])
    client.post("index", forge.index(client.key, {client.post("data", content): listed}))
    client.post("snapshots", forge.snapshot(client.key, tree=blob.id, **{"tags": tags(), **fields}))


def tags(**more: str) -> List[str]:
    values = {"job": "web", "generation": LATE, "state": "good", "bytes": "200000", "files": "3", "manifest": "0" * 64, **more}
    return ["stillpoint", *("%s=%s" % pair for pair in values.items())]


def late(client: Client, **more: Any) -> None:
    """Send another copy, as the host does each day, but for what is given."""
    client.send(LATE, {**FILES, "files/own": b"late"}, **{"host": "victim", **more})


def many(client: Client) -> None:
    """Send copies that claim to be of other days."""
    tree = json.loads(client.restic("cat", "snapshot", one(client, "snapshots"), "--no-lock").stdout)["tree"]
    for number in range(8):
        day = "2026-%02d-%02dT02:00:00Z" % (number // 28 + 1, number % 28 + 1)
        client.post("snapshots", forge.snapshot(client.key, tree=tree, time=day, hostname="victim", tags=tags(generation="g%d" % number)))


def broken_uploads(client: Client) -> None:
    """Break off uploads and leave others open."""
    context = ssl.create_default_context(cafile=str(client.vault.certificate))
    for number in range(10):
        with socket.create_connection(("localhost", client.vault.port)) as plain, context.wrap_socket(plain, server_hostname="localhost") as stream:
            head = "POST /%s/data/%s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %s\r\nContent-Length: 1000\r\n\r\n"
            stream.sendall((head % (client.host, forge.name(b"%d" % number), client.authorization)).encode() + b"x" * number)


def deep(client: Client) -> None:
    """Send a tree of three thousand directories in each other."""
    blobs = [forge.Blob.honest(forge.TREE, forge.tree())]
    for _number in range(3000):
        blobs.append(forge.Blob.honest(forge.TREE, forge.tree({"name": "d", "type": "dir", "mode": 0o755 | 1 << 31, "subtree": blobs[-1].id})))
    content, listed = forge.pack(client.key, blobs[:1])
    client.post("index", forge.index(client.key, {client.post("data", content): listed}))
    client.post("snapshots", forge.snapshot(client.key, tree=blobs[-1].id, tags=tags()))


def bomb(client: Client) -> bytes:
    """Return a pack with a blob that grows to 60 MB when it is read."""
    packed = subprocess.run("head -c 60000000 /dev/zero | zstd -q", shell=True, stdout=subprocess.PIPE, check=True).stdout
    sealed = client.key.sealed(packed)
    header = client.key.sealed(b"\x02" + len(sealed).to_bytes(4, "little") + (60000000).to_bytes(4, "little") + bytes(32))
    return sealed + header + len(header).to_bytes(4, "little")


ESCAPES = "\x1b]0;owned\x07\x1b[2J"

#: What is done, and the alarm that comes of it: "" where the keeper does its work as ever
ATTACKS: Dict[str, Tuple[Callable[[Client], Any], str]] = {
    "nothing at all": (late, ""),
    "a pack that passes other data off as an old blob": (lambda client: client.post("data", forged_pack(client, forge.DATA)), "packs"),
    "a pack that passes another tree off as an old one": (lambda client: client.post("data", forged_pack(client, forge.TREE, forge.tree())), "packs"),
    "a forged pack, then an honest copy": (lambda client: (client.post("data", forged_pack(client, forge.DATA)), late(client)), "packs"),
    "a pack of random bytes": (lambda client: client.post("data", os.urandom(5000)), "packs"),
    "a pack of one byte": (lambda client: client.post("data", b"x"), "packs"),
    "a pack of nothing": (lambda client: client.post("data", b""), "packs"),
    "a pack whose header is longer than itself": (lambda client: client.post("data", b"a" * 99 + b"\xff\xff\xff\x7f"), "packs"),
    "a pack that grows when it is read": (lambda client: client.post("data", bomb(client)), "packs"),
    "an honest pack that nothing needs": (lambda client: client.post("data", forge.pack(client.key, [forge.Blob.honest(0, b"x")])[0]), ""),
    "an index that puts blobs in each other's place": (lambda client: client.post("index", swapped_index(client)), ""),
    "an index that makes all others void": (lambda client: client.post("index", superseding_index(client)), ""),
    "an index of packs that are not there": (lambda client: client.post("index", forge.index(client.key, {"0" * 64: []})), ""),
    "an index that can't be read": (lambda client: client.post("index", os.urandom(500)), ""),
    "an index that is no JSON": (lambda client: client.post("index", client.key.sealed(b"]")), ""),
    "a snapshot that can't be read": (lambda client: client.post("snapshots", os.urandom(500)), "unreadable"),
    "a snapshot that is no JSON": (lambda client: client.post("snapshots", client.key.sealed(b"{")), "unreadable"),
    "a snapshot of a tree that is not there": (lambda client: client.post("snapshots", forge.snapshot(client.key, tree="0" * 64, tags=tags())), "unsound"),
    "a snapshot without a tree": (lambda client: client.post("snapshots", forge.snapshot(client.key, tags=tags())), "unsound"),
    "a snapshot whose tags are numbers": (lambda client: client.post("snapshots", forge.snapshot(client.key, tags=[1])), "unreadable"),
    "a snapshot with what a terminal obeys": (lambda client: snapshot_of(client, {"name": ESCAPES}, hostname=ESCAPES, tags=tags(job=ESCAPES)), "foreign"),
    "a file with what a terminal obeys": (lambda client: snapshot_of(client, {"name": ESCAPES}), "unsound"),
    "a file whose name leads out": (lambda client: snapshot_of(client, {"name": "../../etc/cron.d/x"}), "unsound"),
    "a directory whose name is ..": (lambda client: snapshot_of(client, {"name": ".."}), "unsound"),
    "a file without a name": (lambda client: snapshot_of(client, {"name": ""}), "unsound"),
    "a set-uid file that no manifest has": (lambda client: snapshot_of(client, {"name": "sh", "mode": 0o755 | 1 << 23}), "unsound"),
    "a file whose contents are not there": (lambda client: snapshot_of(client, {"name": "x", "size": 5, "content": ["0" * 64]}), "unsound"),
    "three thousand directories in each other": (deep, "unsound"),
    "a copy with another manifest's tag": (lambda client: late(client, manifest="1" * 64), "unsound"),
    "a copy without a tag": (lambda client: client.restic("backup", str(client.vault.file)), "foreign"),
    "a job's name that leads out": (lambda client: late(client, job="../../x"), "foreign"),
    "a time that is to come": (lambda client: late(client, time="2099-01-01 00:00:00"), "time"),
    "a time long ago": (lambda client: late(client, time="1971-01-01 00:00:00"), "time"),
    "a copy of nearly nothing": (lambda client: client.send(LATE, {"files/a": b"x"}, host="victim"), "shrunk"),
    "a size that is a lie": (lambda client: late(client, bytes=1), "shrunk"),
    "a name that has been there": (lambda client: client.send("2026-11-03T02-00-05Z", FILES, host="victim"), "twice"),
    "another host's name": (lambda client: late(client, host="other"), "host"),
    "eight copies with forged times": (many, "unsound"),
    "a copy that it calls damaged": (lambda client: late(client, state="bad"), ""),
    "a state that there is not": (lambda client: late(client, state="excellent"), ""),
    "thirty locks that can't be read": (lambda client: [client.post("locks", os.urandom(99)) for _number in range(30)], ""),
    "a lock that is no JSON": (lambda client: client.post("locks", client.key.sealed(b"")), ""),
    "uploads that break off": (broken_uploads, ""),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_after_an_attack(scene: Scene, attack: str) -> None:
    client = scene.clone()
    directory = client.vault.directory(client.host)
    before = fingerprint(client.vault.directory("other").served)
    act, expected = ATTACKS[attack]
    act(client)
    done = round_of(client)
    assert {each.split(":")[0] for each in done} >= ({expected} if expected else set()) and bool(done) == bool(expected), done
    kept = scene.ids if expected else scene.ids[2:]
    assert set(kept) <= {each.id for each in directory.files()[0] if each.kind == "snapshots"}
    assert client.restored(kept[0]) == []
    if expected:
        cure(client)
        assert round_of(client) == []
        assert client.restored(scene.ids[2]) == []
    assert client.restic("check", "--read-data").returncode == 0
    assert fingerprint(client.vault.directory("other").served) == before


def round_of(client: Client) -> List[str]:
    """Have the keeper make a round and return the alarms that stand then."""
    try:
        done: Round = keeper.prune(client.vault.directory(client.host))
    except StillpointError as error:
        return ["failed:%s" % error]
    assert all(each.text.isprintable() and ("stillpoint vault" in each.text or "look" in each.text) for each in done.alarms)
    return [each.key for each in done.alarms]


def cure(client: Client) -> None:
    """Do what the alarms say."""
    directory = client.vault.directory(client.host)
    keeper.check(directory, accept=True, reject=True)


def test_the_other_hosts_copies_are_what_they_were(scene: Scene) -> None:
    assert scene.other.restored(scene.others) == []
    assert keeper.prune(scene.made.directory("other")).alarms == ()
