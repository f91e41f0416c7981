# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a generation at a copy is what was sent, without fetching it: its manifest, its listing held against that, and the repository's data read.

That every file has the contents that its checksum says is proven by fetching it alone.
"""

from __future__ import annotations

import os
import tempfile
import time
from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Tuple

from ..host.errors import CommandError, StillpointError
from ..host.reporter import Reporter
from ..repository import manifest
from ..repository.compare import shown
from ..repository.manifest import FILE, Entry
from .destination import Destination, summary_line
from .known import CopiedGeneration
from .restic import Output
from .send import manifest_sha256

_MOST_FAULTS = 100
_TYPES = {"dir": manifest.DIRECTORY, "dev": "block device", "chardev": "character device"}


@dataclass(frozen=True)
class CopyVerdict:
    """What a verification of a copy found.

    :ivar files: regular files that its manifest and its listing have
    :ivar percent: of the repository's data that was read; None for all of it
    :ivar faults: the first of them, as sentences
    """

    generation: str
    copy: str
    files: int
    bytes: int
    percent: Optional[float]
    faults: Tuple[str, ...]
    faults_total: int
    duration_s: float

    @property
    def ok(self) -> bool:
        return not self.faults_total

    def as_dict(self) -> Dict[str, Any]:
        return {**vars(self), "faults": list(self.faults), "ok": self.ok}


def verify(destination: Destination, copied: CopiedGeneration, percent: Optional[float], reporter: Reporter) -> CopyVerdict:
    """Return what is found of a generation at a copy.

    :param percent: of the repository's data that is read, of all generations; None: all of it
    :raises StillpointError: it could not be read to its end, so nothing is known
    """
    started = time.monotonic()
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="stillpoint-") as scratch:
        reporter.stage("manifest")
        faults = _manifest_faults(destination, copied, scratch)
        if not faults:
            reporter.stage("listing")
            faults = _listing_faults(destination, copied, scratch)
    reporter.stage("read")
    faults += _data_faults(destination, percent)
    duration = round(time.monotonic() - started, 1)
    facts = (copied.name, destination.copy, copied.files, copied.bytes, percent)
    return CopyVerdict(*facts, tuple(faults[:_MOST_FAULTS]), len(faults), duration)


def _manifest_faults(destination: Destination, copied: CopiedGeneration, scratch: str) -> List[str]:
    """Write the manifest of a generation into a directory, and return what is wrong with it."""
    try:
        with open(os.path.join(scratch, manifest.NAME), "wb") as file:
            destination.restic.send("dump", "--no-lock", copied.id, "/" + manifest.NAME, stdout=file)
        if manifest_sha256(scratch) != copied.manifest:
            return ["the manifest is another one than its tags say"]
        manifest.check(scratch)
    except manifest.Damaged as error:
        return [str(error)]
    except CommandError as error:
        return ["the manifest can't be read: %s" % error]
    return []


def _listing_faults(destination: Destination, copied: CopiedGeneration, scratch: str) -> List[str]:
    """Return what is not listed in the snapshot as the manifest has it. Sockets are not, as restic leaves them out."""
    expected = {_as_listed(entry.path): entry for entry in manifest.entries(scratch) if entry.type != "socket"}
    faults: List[str] = []

    def take(line: str) -> None:
        node = summary_line(line)
        if node.get("struct_type") != "node" or node.get("path") == "/" + manifest.NAME:
            return
        entry = expected.pop(str(node.get("path", ""))[1:], None)
        difference = _difference(node, entry)
        if difference and len(faults) < _MOST_FAULTS:
            faults.append("%s: %s" % (shown(str(node.get("path"))[1:].encode("utf-8", "replace")), difference))

    destination.restic.send("ls", "--json", "--no-lock", copied.id, on_line=take)
    return faults + ["%s: missing" % shown(entry.path) for entry in expected.values()]


def _difference(node: Dict[str, Any], entry: Optional[Entry]) -> str:
    if entry is None:
        return "not in the manifest"
    kind = str(node.get("type"))
    if _TYPES.get(kind, kind) != entry.type:
        return "is a %s, was a %s" % (_TYPES.get(kind, kind), entry.type)
    if entry.type == FILE and node.get("size", 0) != entry.size:
        return "has %s bytes, had %d" % (node.get("size", 0), entry.size)
    if (node.get("uid"), node.get("gid")) != (entry.uid, entry.gid):
        return "belongs to %s:%s, belonged to %d:%d" % (node.get("uid"), node.get("gid"), entry.uid, entry.gid)
    return "has another mode than %04o" % entry.mode if (int(node.get("mode", 0)) ^ entry.mode) & 0o777 else ""


def _as_listed(path: bytes) -> str:
    """Return a path as restic's JSON has it: with U+FFFD for each byte that is not UTF-8."""
    text = path.decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if 0xDC80 <= ord(each) <= 0xDCFF else each for each in text)


def _data_faults(destination: Destination, percent: Optional[float]) -> List[str]:
    """Return what restic finds wrong with the repository, having read a share of its data."""
    words = ["--read-data"] if percent is None else ["--read-data-subset=%g%%" % percent]
    output: Output = destination.restic.send("check", "--no-lock", *words, accept=(0, 1))
    if output.rc == 0:
        return []
    said = [line.strip() for line in (output.stderr + output.stdout).splitlines()]
    faults = [line for line in said if any(word in line.lower() for word in ("error", "damaged", "missing", "not referenced", "does not match"))]
    if not faults:
        raise StillpointError("the repository %s can't be checked: %s" % (destination.restic.url, said[-1] if said else "restic did not say why"))
    return ["the repository: %s" % line for line in faults]
