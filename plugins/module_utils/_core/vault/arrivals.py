# SPDX-License-Identifier: GPL-3.0-or-later
"""What has arrived in a host's repository, and whether each copy is what its manifest says.

All that is read here a client has written: names, tags and times are taken for what they are in form alone, or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from datetime import datetime, timezone
from itertools import zip_longest
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from ..host.errors import CommandError, StillpointError
from ..host.steps import reached
from ..repository import manifest
from . import ledger as ledgers
from .engine import Engine, plain
from .layout import HostDirectory, StoredFile
from .ledger import Copy, Ledger
from .trusted import Trusted

TAG = "stillpoint"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,99}")
_STATES = ("good", "unproven", "bad")
_TYPES = {"file": manifest.FILE, "dir": manifest.DIRECTORY, "symlink": manifest.LINK, "fifo": "fifo", "dev": "block device", "chardev": "character device"}
_MANIFEST_LIMIT = 64 << 30


def take_in(directory: HostDirectory, now: float) -> Tuple[Ledger, List[str]]:
    """Write into the ledger what has arrived, and what became of it when it was compared with its manifest.

    Return the ledger and the ids of snapshots that can't be read.
    """
    # snapshots first: restic writes them last, so all that they need is in what is listed next
    snapshots = [each for each in directory.files()[0] if each.kind == "snapshots"]
    stored, _foreign = directory.files()
    trusted = Trusted(directory)
    trusted.take_in(stored)
    with trusted.view(snapshots) as engine:
        read = engine.snapshots()
    _note_new(directory, ledgers.read(directory.ledger), snapshots, read, now)
    reached("vault arrivals noted", directory.host)
    _judge(directory, trusted, {each.id: each for each in snapshots})
    return ledgers.read(directory.ledger), sorted(each.id for each in snapshots if each.id not in read)


def _note_new(directory: HostDirectory, ledger: Ledger, snapshots: Sequence[StoredFile], read: Dict[str, Dict[str, Any]], now: float) -> None:
    known = {each.id for each in ledger.copies}
    last = ledger.copies[-1].arrived if ledger.copies else 0.0
    events = []
    for each in sorted(snapshots, key=lambda stored: (stored.arrived, stored.id)):
        if each.id in read and each.id not in known:
            last = max(last, min(each.arrived, now))  # the vault's clock may have been put back; the order of arrival stays
            events.append({"event": ledgers.ARRIVED, **copy_of(each.id, last, read[each.id]).__dict__})
    ledgers.append(directory.ledger, *events)


def copy_of(name: str, arrived: float, said: Dict[str, Any]) -> Copy:
    """Return what a snapshot says of itself, as far as it has the form that it has to have."""
    tags = said.get("tags") or []
    values = dict(each.split("=", 1) for each in tags if "=" in each)
    state = values.get("state", "")
    return Copy(
        id=name,
        arrived=round(arrived, 3),
        claimed=_seconds(said.get("time")),
        job=_word(values.get("job")),
        generation=_word(values.get("generation")),
        state=state if state in _STATES else "bad",
        bytes=_number(values.get("bytes")),
        files=_number(values.get("files")),
        manifest=_word(values.get("manifest")),
        hostname=_word(said.get("hostname")),
        foreign=TAG not in tags or not all(_word(values.get(key)) for key in ("job", "generation", "manifest")),
    )


def _word(value: Any) -> str:
    return value if isinstance(value, str) and _WORD.fullmatch(value) else ""


def _number(value: Optional[str]) -> int:
    return int(value) if value and re.fullmatch(r"[0-9]{1,18}", value) else 0


def _seconds(value: Any) -> float:
    """Return the seconds of a time as Go writes it; 0 where it is none that can be told."""
    found = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.\d+)?(?:Z|([+-])(\d\d):(\d\d))", str(value))
    if not found:
        return 0.0
    try:
        whole = datetime.strptime(found.group(1), "%Y-%m-%dT%H:%M:%S").replace(tzinfo=timezone.utc).timestamp()
    except (ValueError, OverflowError):
        return 0.0
    offset = int(found.group(3)) * 3600 + int(found.group(4)) * 60 if found.group(2) else 0
    return whole - offset if found.group(2) == "+" else whole + offset


# -- judging


def _judge(directory: HostDirectory, trusted: Trusted, there: Dict[str, StoredFile]) -> None:
    """Compare each copy that was not found sound yet with its manifest, and write down what came of it."""
    ledger = ledgers.read(directory.ledger)
    for copy in ledger.present():
        if copy.id in ledger.sound or copy.id not in there:
            continue
        with trusted.view([there[copy.id]]) as engine:
            why = fault(engine, copy)
        if not why:
            ledgers.append(directory.ledger, {"event": ledgers.SOUND, "id": copy.id})
        elif ledger.unsound.get(copy.id) != why:
            ledgers.append(directory.ledger, {"event": ledgers.UNSOUND, "id": copy.id, "why": why})


def fault(engine: Engine, copy: Copy) -> str:
    """Return what is wrong with a copy, by a view of it alone; "" where it is what its manifest says and all of it is there."""
    try:
        engine.run("check")  # fails where a blob is in no trusted pack, or a tree is none
        if copy.foreign:
            return _fault_of_foreign(engine, copy)
        with tempfile.TemporaryDirectory(prefix="stillpoint-vault-") as folder:
            if _fetch_manifest(engine, copy, folder) != copy.manifest:
                return "its manifest is not the one that its tag names"
            return _difference(manifest.entries(folder), _listed(engine, copy.id))
    except CommandError as error:
        return "parts of it are missing or can't be read (%s)" % plain(str(error))[-160:]
    except manifest.Damaged:
        return "its manifest is damaged"
    except _Unsafe as error:
        return str(error)


class _Unsafe(StillpointError):
    """A listing holds what no honest client sends."""


def _fault_of_foreign(engine: Engine, copy: Copy) -> str:
    for _listed_entry in _listed(engine, copy.id):
        pass
    return ""


def _fetch_manifest(engine: Engine, copy: Copy, folder: str) -> str:
    """Put the manifest of a copy into a folder and return its SHA-256."""
    digest = hashlib.sha256()
    size = 0
    with open(os.path.join(folder, manifest.NAME), "wb") as file:
        for line in engine.lines("dump", copy.id, "/" + manifest.NAME, "--no-lock"):
            size += len(line)
            if size > _MANIFEST_LIMIT:
                raise _Unsafe("its manifest has more than 64 GiB")
            digest.update(line)
            file.write(line)
    return digest.hexdigest()


_Listed = Tuple[str, str, int]  # path, type, size


def _listed(engine: Engine, snapshot: str) -> Iterator[_Listed]:
    """Return what restic lists of a snapshot.

    :raises _Unsafe: a name in it would lead out of the directory that it is restored into
    """
    for line in engine.lines("ls", snapshot, "--json", "--no-lock"):
        node = json.loads(line)
        if node.get("struct_type") == "node" or node.get("message_type") == "node":
            path, name = str(node.get("path")), str(node.get("name"))
            if name in ("", ".", "..") or "/" in name or not path.endswith("/" + name) or {"..", "."} & set(path.split("/")):
                raise _Unsafe("it has a name that leads out of the directory that it is restored into")
            yield path.lstrip("/"), _TYPES.get(node.get("type"), "?"), int(node.get("size") or 0)


def _difference(entries: Iterator[manifest.Entry], listed: Iterator[_Listed]) -> str:
    """Return what a listing has other than a manifest; "" where they are the same."""
    wanted = ((_go_text(each.path), each.type, each.size) for each in entries if each.type != "socket")  # which restic leaves out
    found = (each for each in listed if each[0] != manifest.NAME)
    for one, other in zip_longest(wanted, found):
        if one != other:
            name = plain((one or other or ("", "", 0))[0])[:100]
            return "its listing is not what its manifest says, from %s on" % (name or "the beginning")
    return ""


def _go_text(path: bytes) -> str:
    """Return a path as a program in Go prints it in JSON: a byte that is not UTF-8 becomes U+FFFD."""
    return re.sub("[\udc80-\udcff]", "\ufffd", path.decode("utf-8", "surrogateescape"))
