# SPDX-License-Identifier: GPL-3.0-or-later
"""A published backup: what its manifest says, what was found of it later, and what state that leaves it in."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime, timezone
from functools import cached_property
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple

from ..host import durable, text
from ..host.errors import UsageError
from . import manifest

GOOD, UNPROVEN, BAD = "good", "unproven", "bad"

#: What a generation is called, and how times are written in what is recorded of one; both UTC
NAME_FORMAT = "%Y-%m-%dT%H-%M-%SZ"
MOMENT = "%Y-%m-%dT%H:%M:%SZ"

#: The record of what was found of a generation, beside it: its name between a dot and this
VERIFIED = ".verified"

#: One that is being made: the name of its run between a dot and this
PARTIAL = ".partial"

#: The link to the newest one that is not bad
LATEST = "latest"

# In place of a record that is there and can't be read.
_UNREADABLE = {"ok": False, "files": 0, "faults": ["it was found damaged, and what was wrong could not be recorded"], "faults_total": 1, "time": ""}


class Gone(UsageError):
    """A generation is gone, or about to be."""


class RecordedTree(NamedTuple):
    """A tree of a generation, as its manifest names it.

    :ivar source: what it was called on the live system
    :ivar bytes: of its regular files
    :ivar allocated: bytes of disk that they take when they are put back
    :ivar user: name of the account that owns its root, where the host had one of that number; group: the same
    """

    name: str
    source: str
    files: int
    bytes: int
    allocated: int
    user: str = ""
    group: str = ""

    @property
    def is_files(self) -> bool:
        """Whether it is of the file half of a backup, not of the server's."""
        return self.name == "files" or self.name.startswith("files/")

    @property
    def is_dump(self) -> bool:
        """Whether it is SQL, to be loaded into a server."""
        return self.name == "dump" or (self.name.endswith(".sql.zst") and not self.is_files)


def _recorded(tree: Mapping[str, Any]) -> RecordedTree:
    names = (str(tree.get(key) or "") for key in ("user", "group"))
    return RecordedTree(str(tree["name"]), str(tree["source"]), int(tree["files"]), int(tree["bytes"]), int(tree["allocated"]), *names)


class Generation:
    """A published backup. What its manifest says is read when it is first asked for."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.name = os.path.basename(path)

    def __repr__(self) -> str:
        return "Generation(%r)" % self.path

    @cached_property
    def _head(self) -> Tuple[Dict[str, Any], str]:
        try:
            summary = manifest.summary(self.path)
            for tree in summary["trees"]:
                _recorded(tree)
            int(summary["sequence"])
            return summary, ""
        except manifest.Damaged as error:
            return {}, str(error)
        except (KeyError, TypeError, ValueError):
            return {}, "the manifest of %s is not what was written" % self.path

    @property
    def summary(self) -> Dict[str, Any]:
        """The manifest's summary; empty when it can't be read."""
        return self._head[0]

    @property
    def time(self) -> datetime:
        """The point in time that it holds, UTC."""
        try:
            return text.moment(str(self.summary["time"]))
        except (KeyError, ValueError):
            return datetime.strptime(self.name[:20], NAME_FORMAT).replace(tzinfo=timezone.utc)

    @property
    def host(self) -> str:
        """What the machine was called that it is of; "" where that is not known."""
        return str(self.summary.get("host") or "")

    @property
    def sequence(self) -> Optional[int]:
        """Its number, in the order in which generations were made; None where it can't be read."""
        return int(self.summary["sequence"]) if self.summary else None

    @property
    def trees(self) -> Tuple[RecordedTree, ...]:
        return tuple(_recorded(tree) for tree in self.summary.get("trees", ()))

    @property
    def size_bytes(self) -> int:
        """Bytes of its files, shared ones included."""
        return sum(tree.bytes for tree in self.trees)

    @property
    def files(self) -> int:
        """How many files it has."""
        return sum(tree.files for tree in self.trees)

    @property
    def recorded(self) -> Dict[str, Any]:
        """What was recorded of it later: a verdict, the last sample without a fault as ``sample``, the last proof on a copy as ``proof``."""
        found = durable.read_json(self.verdict_path)
        if isinstance(found, dict):
            return found
        # what was found could not be written, or can't be read any more: it was no praise
        return dict(_UNREADABLE) if os.path.lexists(self.verdict_path) else {}

    @property
    def verified(self) -> Optional[Dict[str, Any]]:
        """What the last verification of all of it found, or a sample that found a fault; None before the first."""
        return {key: value for key, value in self.recorded.items() if key not in ("sample", "proof")} or None

    @property
    def proof(self) -> Optional[Dict[str, Any]]:
        """What a proof found: one that failed, else one that passed, be it of the run or on a copy; None where there was none."""
        found = [proof for proof in (self.summary.get("proof"), self.recorded.get("proof")) if proof]
        for ok in (False, True):
            for proof in found:
                if proof.get("ok") is ok:
                    return dict(proof)
        return dict(found[0]) if found else None

    @property
    def verdict_path(self) -> str:
        return os.path.join(os.path.dirname(self.path), "." + self.name + VERIFIED)

    @property
    def damage(self) -> str:
        """What is known to be wrong with its files; "" where nothing is."""
        if self._head[1]:
            return self._head[1]
        verified = self.verified
        if verified and not verified.get("time"):
            return str(verified["faults"][0])
        if verified and verified.get("faults_total"):
            return "%d faults were found on %s" % (verified["faults_total"], verified.get("time"))
        return ""

    @property
    def found_damaged(self) -> Optional[datetime]:
        """When faults were found in it, UTC; None where none were, or where that is not known."""
        verified = self.verified
        return moment(verified) if verified and verified.get("faults_total") else None

    @property
    def failed_proof(self) -> str:
        """Why its proof failed; "" where it passed, where it could not be done, or where there was none."""
        proof = self.proof
        if proof and proof.get("ok") is False:
            return str(proof.get("reason") or "a server did not start on it")
        return ""

    @property
    def reason(self) -> str:
        """Why it is bad; "" when it is not."""
        return self.damage or self.failed_proof

    @property
    def state(self) -> str:
        """``bad``: damaged, or its proof failed; ``good``: it is proven, or has no database; else ``unproven``."""
        if self.reason:
            return BAD
        if (self.proof or {}).get("ok") or all(tree.is_files for tree in self.trees):
            return GOOD
        return UNPROVEN

    def record(self, value: Mapping[str, Any]) -> None:
        """Keep what was found of it, beside it; `recorded` returns that.

        :raises OSError: it can't be written. What says that it is damaged then leaves a mark that says so, if even that is possible
        """
        try:
            durable.write_json(self.verdict_path, value)
        except OSError:
            if value.get("faults_total"):
                with suppress(OSError):  # a full disk takes an empty file
                    os.close(os.open(self.verdict_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            raise
        finally:
            with suppress(OSError):
                os.unlink(self.verdict_path + ".new")

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Keep it from being removed.

        :raises Gone: it is, or about to be
        :raises UsageError: it can't be read
        """
        with ExitStack() as stack:
            try:
                held = stack.enter_context(durable.lock(self.path, shared=True))
            except OSError as error:
                kind = Gone if isinstance(error, FileNotFoundError) else UsageError
                raise kind("the generation %s can't be read: %s" % (self.path, error.strerror)) from error
            if held is None or not _is_at(held, self.path):
                raise Gone("the generation %s is being removed by another run" % self.path)
            yield


def _is_at(descriptor: int, path: str) -> bool:
    """Tell whether what is open has its name still."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except OSError:
        return False


def now() -> str:
    """Return this moment, UTC, as it is recorded."""
    return datetime.now(timezone.utc).strftime(MOMENT)


def moment(recorded: Mapping[str, Any]) -> Optional[datetime]:
    """Return when a verification ended, UTC; None where that is not known."""
    try:
        return text.moment(str(recorded.get("time")))
    except ValueError:
        return None
