# SPDX-License-Identifier: GPL-3.0-or-later
"""Which volumes can hold one point in time together, under which lock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from _core.backup import sources
from _core.backup.point import Quiesce
from _core.host.errors import StillpointError
from _core.host.mounts import Mount, Place
from _core.lvm.layout import FILES, Located
from _core.lvm.volumes import LogicalVolume
from _core.mysql.connection import Login
from _core.mysql.lock_choice import Choice, Method
from _core.mysql.locks import LockOptions

ROOT = LogicalVolume("vg00", "root", "u", "", "vg00-root", "", 1 << 30, ("linear",), ("public",), (), 253, 0, "", "", None, None, 1 << 30, 1 << 22, 0)
DATA = replace(ROOT, vg="data", name="db", minor=1)


def located(role: str, volume: LogicalVolume) -> Located:
    path = "/srv/" + role
    return Located(role, path, Place(path, Mount(253, volume.minor, "/", "/srv", "ext4", "x"), role), volume)


def quiesce(lock: str) -> Quiesce:
    method = None if lock == "none" else Method(lock, (), (), (), stops_commits=lock != "instance")
    return Quiesce(Login(), None, Choice(method, lock, "for the test"), LockOptions(lock))  # type: ignore[arg-type]


def test_files_may_lie_on_other_volumes_than_the_server_under_a_lock_that_stops_commits() -> None:
    apart = [located("datadir", DATA), located(FILES, ROOT)]
    for lock in ("backup_stage", "ftwrl"):
        sources.check_one_point(apart, [], quiesce(lock))
    for lock in ("none", "instance"):
        with pytest.raises(StillpointError, match="with lock %s commits go on between the snapshots of data/db and vg00/root" % lock):
            sources.check_one_point(apart, [], quiesce(lock))
        with pytest.raises(StillpointError, match="commits go on"):
            sources.check_one_point([located("datadir", DATA)], [ROOT], quiesce(lock))
        sources.check_one_point([located("datadir", DATA), located(FILES, DATA)], [DATA], quiesce(lock))


def test_the_servers_own_files_may_not_lie_on_several_volumes_under_any_lock() -> None:
    for lock in ("backup_stage", "ftwrl", "none"):
        with pytest.raises(StillpointError, match="/srv/datadir lies on data/db and the server's redo directory /srv/redo on vg00/root"):
            sources.check_one_point([located("datadir", DATA), located("redo", ROOT)], [], quiesce(lock))


def test_files_alone_may_lie_anywhere() -> None:
    sources.check_one_point([located(FILES, DATA), located(FILES, ROOT)], [], None)
