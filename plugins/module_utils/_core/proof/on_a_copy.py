# SPDX-License-Identifier: GPL-3.0-or-later
"""A trial: the proof once more, by a server that is started on a copy of a generation, which itself is only read."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from contextlib import ExitStack, contextmanager
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence

from ..host import durable, text
from ..host.errors import CommandError, StillpointError, UsageError
from ..host.free_space import space
from ..host.mounts import bound, enter_private_namespace, is_below
from ..host.process import kill, run, sentence, start, undisturbed
from ..host.processes import process_start
from ..host.reporter import Reporter
from ..job import options
from ..job.names import host_name
from ..job.options import Job
from ..mysql import server as servers
from ..mysql import settings
from ..mysql.connection import Login
from ..mysql.lock_choice import COMMITS_STOPPED
from ..mysql.settings import Settings
from ..repository import blocks, recorded
from ..repository.generation import Generation, RecordedTree
from ..repository.job_directory import TRIAL
from .checksums import record_proof
from .known_faults import recorded_tables
from .prove import Claim, Proof, prove, writes

SUBJECT = "a copy of the backup"

_POLL = 0.2


class _Copies:
    """In place of mounted snapshots: where what was live lies in the copy."""

    def __init__(self, where: Mapping[str, str]) -> None:
        self._where = where

    def directory(self, source: str) -> str:
        return self._where[source]

    def find_any(self, source: str, _targets: Sequence[Any]) -> Optional[str]:
        for live, copy in self._where.items():
            if is_below(source, live):
                return os.path.normpath(os.path.join(copy, os.path.relpath(source, live)))
        return None


def settings_of(generation: Generation) -> Settings:
    """Return the Settings of the server whose files a generation has, made sure of that this host has the program for them.

    :raises UsageError: it has no server's files
    :raises StillpointError: there is no such program, or it is of another version
    """
    facts = generation.summary.get("settings")
    if not facts or not _trees(generation):
        raise UsageError("%s has no files of a server that one could be started on: leave out --server" % generation.path)
    found = settings.from_dict(facts)
    program = found.find_program()
    flavour, version, text = program_version(program)
    # MariaDB opens the files of a series with any of its releases; MySQL may change its dictionary with each
    same = version[:2] == found.version[:2] if found.is_mariadb else version == found.version
    if flavour != found.flavour or not same:
        raise StillpointError(
            "%s is of %s %s and %s on this host is %s %s: verify it on a host with the server that it is of, or leave out --server"
            % (generation.path, found.flavour, found.version_text, program, flavour, text)
        )
    return found


def program_version(program: str) -> "tuple[str, servers.Version, str]":
    """Return flavour and version of a server program, and the version as it says it.

    :raises StillpointError: it does not say
    """
    said = run([program, "--no-defaults", "--version"]).stdout
    text = said.partition(" Ver ")[2].strip()
    if not text:
        raise StillpointError("%s does not say which version it is: %s" % (program, sentence(said) or "it said nothing"))
    number = text.split()[0]
    return (*servers.flavour_and_version(number, text), number)


def try_copy(generation: Generation, reporter: Reporter, job: Optional[Job] = None) -> Dict[str, Any]:
    """Start a server on a copy of a generation, record what that proves beside it, and return it.

    :param job: of the generation: what it accepts, and how its server, if it is this host's, is asked for its own faults
    :raises StillpointError: it can't be tried: no server's files, no program, no room for a copy
    """
    described = settings_of(generation)
    with generation.hold(), ExitStack() as stack:
        reporter.stage("copy")
        copy = stack.enter_context(_copied(generation, described, reporter))
        enter_private_namespace()
        where = {}
        for number, tree in enumerate(_trees(generation)):
            name = "mount-%d-%d-%d" % (os.getpid(), process_start(os.getpid()) or 0, number)
            where[tree.source] = stack.enter_context(bound(os.path.join(copy, tree.name), name))
        missing = [path for _role, path in described.paths if path not in where]
        if missing:
            raise StillpointError("%s lacks %s, which the server needs" % (generation.path, missing[0]))
        reporter.stage("prove")
        proof = _prove(generation, described, where, job)
        facts = proof.as_dict()
        record_proof(generation, facts, reporter)
    return facts


def _prove(generation: Generation, described: Settings, where: Mapping[str, str], job: Optional[Job]) -> Proof:
    lock = recorded.lock(generation)
    claim = Claim(
        settings=described,
        coordinates=recorded.coordinates(generation),
        commits_stopped=lock is not None and lock.method in COMMITS_STOPPED,
        tables=options.ALL,
        later=True,
        login=Login.of(job.mysql) if job and job.mysql and generation.host == host_name() else None,
        accept=job.verify.accept if job else (),
        recorded=recorded_tables(generation.proof),
    )
    proof = prove(claim, _Copies(where), (), lambda: None)
    proof.of = SUBJECT
    return proof


def _trees(generation: Generation) -> List[RecordedTree]:
    return [tree for tree in generation.trees if not tree.is_files and not tree.is_dump]


@contextmanager
def _copied(generation: Generation, described: Settings, reporter: Reporter) -> Iterator[str]:
    """Copy the server's files of a generation beside it, sharing their blocks where the file system can, and remove that at the end. What
    a process that was killed has left, the next run of the job removes.

    :raises StillpointError: there is no room for it
    """
    parent = os.path.dirname(generation.path)
    path = os.path.join(parent, ".%s-%d%s" % (generation.name, os.getpid(), TRIAL))
    try:
        try:
            os.mkdir(path, 0o700)
        except OSError as error:
            raise StillpointError("%s can't be written: %s; a server is only ever started on a copy" % (parent, error.strerror)) from error
        with durable.used(path):
            _check_room(generation, path, described)
            for tree in _trees(generation):
                _copy(os.path.join(generation.path, tree.name), os.path.join(path, tree.name))
            yield path
    finally:
        with undisturbed():
            if os.path.isdir(path):
                try:
                    durable.remove_tree(path)
                except CommandError as error:
                    reporter.warn("%s can't be removed: %s; the next run tries again" % (path, error))


def _check_room(generation: Generation, path: str, described: Settings) -> None:
    shares = blocks.can_be_shared(path)
    needed = writes(described) + (0 if shares else sum(tree.allocated for tree in _trees(generation)))
    free = space(path).free
    if free < needed:
        raise StillpointError(
            "%s has %s free and a copy that a server can be started on needs %s%s: free space there, or leave out --server"
            % (os.path.dirname(path), text.human(free), text.human(needed), "" if shares else ", as its file system can't share blocks (reflinks)")
        )


def _copy(source: str, dest: str) -> None:
    """Copy a tree as it is."""
    with tempfile.TemporaryFile() as said:
        process = start(["cp", "-a", "--reflink=auto", "--", source, dest], dies_with_us=True, gives_way=True, stdout=subprocess.DEVNULL, stderr=said)
        try:
            while process.poll() is None:
                time.sleep(_POLL)
        finally:
            kill(process)
        if process.returncode != 0:
            said.seek(0)
            raise StillpointError("%s can't be copied: %s" % (source, sentence(said.read().decode("utf-8", "replace")) or "cp failed"))
