# SPDX-License-Identifier: GPL-3.0-or-later
"""The plan: everything that is known, chosen and refused before anything is changed. It is also `stillpoint plan` and check mode."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Tuple

from ..dump import plan as dumps
from ..dump.plan import DumpPlan
from ..dump.stream import ALGORITHM
from ..host import text
from ..host.process import require
from ..job import options
from ..job.names import host_name
from ..job.options import Job
from ..lvm import layout
from ..lvm import volumes as lvm
from ..lvm.layout import FILES
from ..lvm.targets import Target
from ..mysql import server as servers
from ..mysql import settings
from ..mysql.absent import nothing_begun
from ..mysql.connection import Session
from ..mysql.settings import Settings
from ..proof import prove
from ..repository import identity
from ..repository.generation import Generation
from ..repository.job_directory import JobDirectory
from ..repository.storing import Storing, storing
from ..trees import Tree
from . import checks
from .point import Quiesce
from .sources import Sources, doubts, find, log_doubts, quiescing, target_facts


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    :ivar trees: what will be copied, as it lies on the live system
    :ivar settings: of the server, for another one that is to open its files
    :ivar proven: the newest generation whose tables are proven
    :ivar sequence: number of the newest generation of this machine from under another name, which the next one comes after
    :ivar events: that the server runs by itself, as far as the account may see them
    :ivar bytes_total: bytes of file data in the trees now; bytes_new: of them, what the newest generation does not have
    :ivar stored: how the trees will be stored, and what of them
    """

    job: Job
    quiesce: Optional[Quiesce]
    targets: Tuple[Target, ...]
    trees: Tuple[Tree, ...]
    bytes_total: int
    bytes_new: int
    repository_free: int
    warnings: Tuple[str, ...]
    settings: Optional[Settings] = None
    proven: Optional[Generation] = None
    dump: Optional[DumpPlan] = None
    sequence: int = 0
    events: Tuple[str, ...] = ()
    stored: Optional[Storing] = None

    @property
    def algorithm(self) -> Optional[str]:
        """The checksum that the generation has to have; None where any will do."""
        return ALGORITHM if self.dump else None

    def as_dict(self) -> Dict[str, Any]:
        asked = self.quiesce or self.dump
        return {
            "job": self.job.name,
            "server": asked.server.summary() if asked else None,
            "lock": {"method": asked.choice.name, "reason": asked.choice.reason} if asked else None,
            "binary_log": asked.server.log_bin if asked else None,
            "dump": self.dump.as_dict() if self.dump else None,
            "volumes": [target_facts(target) for target in self.targets],
            "repository": {
                "path": self.job.repository,
                "free_bytes": self.repository_free,
                **(self.stored.as_dict() if self.stored else {}),
            },
            "bytes_total": self.bytes_total,
            "bytes_new": self.bytes_new,
            "proof": self._proof(),
            "warnings": list(self.warnings),
        }

    def _proof(self) -> Optional[Dict[str, Any]]:
        """Return what the proof will do; None without one."""
        verify = self.job.verify
        if not verify.server or self.settings is None:
            return None
        since = self.proven.name if self.proven and verify.tables == options.CHANGED else None
        return {"program": self.settings.program, "tables": verify.tables, "since": since}

    def lines(self) -> List[str]:
        """Return the plan as lines for people."""
        lines = ["job %s" % self.job.name]
        asked = self.quiesce or self.dump
        if asked:
            server = asked.server
            lines.append("server      %s %s, data directory %s" % (server.flavour, server.version_text, server.datadir))
            lines.append("lock        %s: %s" % (asked.choice.name, asked.choice.reason))
            lines.append(
                "binary log  %s"
                % ("coordinates will be recorded" if server.log_bin else "off: no coordinates, and no recovery to a point in time after the backup")
            )
        lines += self.dump.lines() if self.dump else []
        for target in self.targets:
            volume = target.volume
            size = (
                "thin snapshot in the pool %s" % volume.pool_name
                if target.size is None
                else "snapshot of %s (%s free in %s)"
                % (
                    text.human(target.size),
                    text.human(volume.vg_free),
                    volume.vg,
                )
            )
            lines.append("volume      %s, %s on %s: %s" % (volume.full_name, target.fs_type, target.mount_point, size))
            for hold in target.holds:
                lines.append("            holds %s (%s)%s" % (hold.path, hold.role, " but for " + ", ".join(hold.left_out) if hold.left_out else ""))
        if len(self.targets) > 1:
            lines.append("one point   %s" % self._between())
        lines.append("copy        %s, of which %s are new" % (text.human(self.bytes_total), text.human(self.bytes_new)))
        proving = self._proof()
        if proving:
            lines.append("proof       %s starts on the snapshot after the copy; CHECK TABLE: %s" % (proving["program"], _tables_text(proving)))
        lines.append("repository  %s, %s free" % (self.job.repository, text.human(self.repository_free)))
        if self.stored and self.trees:
            lines.append("            %s" % self.stored.line())
        lines.extend("warning     %s" % warning for warning in self.warnings)
        return lines

    def _between(self) -> str:
        text = "the snapshots of the %d volumes are taken a moment apart, " % len(self.targets)
        return text + ("with commits stopped from before the first until after the last" if self.quiesce else "and nothing stops what writes to the files")


def _tables_text(proving: Mapping[str, Any]) -> str:
    if proving["tables"] == options.CHANGED:
        return "tables that changed since %s" % proving["since"] if proving["since"] else "all tables, as none are proven yet"
    return "all tables" if proving["tables"] == options.ALL else "no tables"


@nothing_begun()
def make(job: Job) -> Plan:
    """Return the Plan for a job. Nothing is changed.

    :raises NotNowError: the server can't be asked now
    :raises StillpointError: one sentence for the first reason why a run would not succeed
    """
    checks.refuse_half_done()
    require("lvs", "rsync", "mount")
    directory = JobDirectory.open(job.repository, host_name(), job.name, to_write=True)
    dump = dumps.make(job.mysql, directory) if job.mysql is not None and job.mysql.is_dump else None
    quiesce = quiescing(job.mysql) if job.mysql is not None and (dump is None or not dump.live) else None
    asked = quiesce or dump
    formers = identity.check(directory, identity.here(asked.server.summary() if asked else None))
    sources = find(quiesce, job.files, job.exclude, lvm.volumes())
    quiesce = sources.quiesce
    checks.check_repository(job.repository, sources.paths)
    trees = sources.trees if dump is None else tuple(tree for tree in sources.trees if tree.name.startswith(FILES))
    stored = storing(directory, trees, checks.newest_trees(directory))
    total, new, needed = (size + (dump.bytes_expected if dump else 0) for size in (stored.sizes.total, stored.sizes.new, stored.needed))
    free = checks.check_room(job.repository, needed)
    warnings = [str(former) for former in formers]
    inside = layout.volume_of(job.repository, sources.known)
    own_writes = {inside.full_name: needed} if inside else {}
    warnings += checks.beside_its_sources(job.repository, inside.full_name if inside else "", [one.volume.full_name for one in sources.located])
    known_settings = None
    events: List[str] = []
    if quiesce:
        with Session(quiesce.login) as session:
            known_settings = settings.read(session, quiesce.server)
            events = servers.enabled_events(session)
        if job.verify.server:
            datadir = sources.located[0].volume.full_name
            own_writes[datadir] = own_writes.get(datadir, 0) + prove.writes(known_settings)
    targets = sources.targets(job.snapshot_size, own_writes)
    warnings += _doubts(sources, dump)
    # a playbook's own task does not warn of these: what it holds, it holds on purpose
    for name in layout.kept_by_playbooks(sources.known):
        warnings.append("the snapshot %s was left by a playbook and fills up: `stillpoint clean --kept` removes it" % name)
    if dump:
        warnings += dump.warnings(files=bool(job.files))
    if job.notify.metrics and not os.path.isdir(job.notify.metrics):
        warnings.append("notify.metrics: there is no directory %s for the metrics" % job.notify.metrics)
    proven = prove.newest_proven(directory.generations()) if job.verify.server else None
    sequence = max((former.sequence for former in formers), default=0)
    return Plan(job, quiesce, tuple(targets), trees, total, new, free, tuple(warnings), known_settings, proven, dump, sequence, tuple(events), stored)


def _doubts(sources: Sources, dump: Optional[DumpPlan]) -> List[str]:
    """Return what somebody should know of the server: a dump reads its rows decrypted, so that its keys do not matter to one."""
    if dump is None:
        return sources.doubts()
    return doubts(sources.quiesce) if sources.quiesce else log_doubts(dump.server)
