# SPDX-License-Identifier: GPL-3.0-or-later
"""What somebody wants to have back, and the plan that brings it: of a copy of files in place or into a directory, of a dump, or of one table."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import List, Optional, Union

from ..archive.archive import Archive
from ..host.errors import StillpointError, UsageError
from ..job import file as jobs
from ..job.names import host_name, job_names
from ..job.options import Job
from ..mysql.connection import Login
from ..repository.generation import Generation
from ..repository.job_directory import JobDirectory
from . import elsewhere
from . import journal as journals
from .dump import plan as load
from .dump.plan import LoadPlan
from .elsewhere import DirectoryPlan
from .in_place import plan as in_place
from .in_place import selection
from .in_place.plan import InPlacePlan
from .in_place.selection import ALL, DATABASE, FILES
from .replay import execute as replays
from .replay.execute import Replay
from .replay.moment import Moment
from .table import plan as tables
from .table.plan import TablePlan

Plan = Union[InPlacePlan, DirectoryPlan, LoadPlan, TablePlan]


@dataclass(frozen=True)
class Request:
    """What is asked for; None: nothing of the kind.

    :ivar generation: its name; None: the newest good one, or the one that leads to the moment
    :ivar host: another host whose backup it is
    :ivar to: the directory that it is put into
    :ivar only: the half that is put back, ``database`` or ``files``
    :ivar path: of the files, this path alone; database: of a dump, this one alone; table: this one alone
    :ivar into: the name that the table gets
    :ivar server_socket: of the server that takes a dump or a table; server_config: option file that logs in to it
    :ivar moment: up to which archived binary logs are replayed
    :ivar resume: another host's server goes on with replication and events
    """

    job: Job
    generation: Optional[str] = None
    host: Optional[str] = None
    to: Optional[str] = None
    only: Optional[str] = None
    path: Optional[str] = None
    database: Optional[str] = None
    table: Optional[str] = None
    into: Optional[str] = None
    server_socket: Optional[str] = None
    server_config: Optional[str] = None
    moment: Optional[Moment] = None
    resume: bool = False

    @property
    def parts(self) -> str:
        """The trees that are put back: ``all``, ``database`` or ``files``."""
        return FILES if self.path is not None else self.only or ALL

    @property
    def directory(self) -> JobDirectory:
        """Where the job's generations are.

        :raises UsageError: the repository is not there
        """
        return JobDirectory.open(self.job.repository, self.host or host_name(), self.job.name)

    @property
    def login(self) -> Login:
        """How to log in to the server that takes a dump or a table."""
        return load.login(self.job, self.server_socket, self.server_config)


def plan(request: Request) -> Plan:
    """Return the plan for what is asked for. Nothing is changed.

    :raises UsageError: it can't be had so
    :raises StillpointError: something is against it
    """
    _refuse(request)
    interrupted = journals.pending() if request.to is None else None
    replay = _replay(request, request.moment) if request.moment and not interrupted else None
    name = request.generation or (interrupted.generation if interrupted and interrupted.job == request.job.name else None)
    generation = replay.recovery.generation if replay else request.directory.find(name)
    made = _plan(request, generation, replay)
    if name is None and replay is None:
        concerned = DATABASE if request.table or request.database else request.parts
        made = replace(made, warnings=(*made.warnings, *selection.passed_over(generation, concerned, request.path)))
    return made


def _refuse(request: Request) -> None:
    """Refuse what goes together with no backup."""
    if request.to == "":
        raise UsageError("--to names no directory")
    if request.moment and request.parts == FILES:
        option = "--path" if request.path is not None else "--only files"
        raise UsageError("files can only be had as they were when a backup was taken: leave out %s, or the moment" % option)


def _replay(request: Request, moment: Moment) -> Replay:
    """Return what has to be replayed onto which generation."""
    directory = request.directory
    return replays.plan(Archive(directory.path), directory, moment, request.generation)


def _plan(request: Request, generation: Generation, replay: Optional[Replay]) -> Plan:
    """Return the plan for putting this generation back."""
    dump = isinstance(generation.summary.get("dump"), dict)
    if request.into is not None and (dump or not request.table):
        raise UsageError(
            "--as is for --table of a backup of the server's files: %s"
            % ("%s is a dump, whose tables keep their names; load it into another server (--server-socket)" % generation.name if dump else "name the table too")
        )
    if request.table and not dump:
        _refuse_with_table(request)
        return tables.make(generation, request.login, request.table, request.into)
    if load.applies(generation, to=request.to, parts=request.parts, asked=_of_a_dump(request)):
        parts = request.parts
        return load.make(generation, request.login, database=request.database, table=request.table, parts=parts, resume=request.resume)
    if request.to is not None:
        return elsewhere.make(generation, request.to, request.parts, path=request.path, replay=replay)
    moment = request.moment.option if request.moment else None
    archives = _archives(request.job)
    return in_place.make(generation, request.parts, path=request.path, replay=replay, archives=archives, moment=moment, resume=request.resume)


def _refuse_with_table(request: Request) -> None:
    """Refuse what one table of a copy of the server's files can't have."""
    for option, value in (("--to", request.to), ("a moment", request.moment)):
        if value:
            raise UsageError("a table can't be had with %s: put all of it into a directory, with --to DIR and the moment, and start a server there" % option)


def _of_a_dump(request: Request) -> Optional[str]:
    """Return the first option that was given and that only a dump has."""
    given = {"--" + name.replace("_", "-"): getattr(request, name) for name in ("database", "table", "server_socket", "server_config")}
    return next((option for option, value in given.items() if value is not None), None)


def _archives(job: Job) -> List[Archive]:
    """Return the archives of this host's server, of whatever job, this one's first."""
    known = [job] if job.mysql else []
    for name in job_names() if job.mysql else []:
        try:
            other = jobs.load(name)
        except StillpointError:
            continue  # it archives nothing as long as it can't be read
        if other.name != job.name and other.mysql and other.binlog:
            known.append(other)
    found = [Archive(os.path.join(each.repository, host_name(), each.name)) for each in known]
    return [archive for archive in found if archive.exists]
