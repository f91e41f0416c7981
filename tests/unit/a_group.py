# SPDX-License-Identifier: GPL-3.0-or-later
"""Snapshots without LVM: a directory stands for each, and a volume group that lists what is done to them."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, List, Optional, Tuple

import pytest
from _core.backup import copied
from _core.host.processes import Owner
from _core.lvm import dm, mounted, volumes
from _core.lvm.layout import FILES
from _core.lvm.targets import Hold, Snapshot
from _core.lvm.volumes import LogicalVolume
from trees import Quiet, small_disk, write

OWNER = Owner("run", "job", "boot", 1, 1)


def snapshot(number: int, directory: Path, *holds: Tuple[str, str, str]) -> Snapshot:
    held = tuple(Hold(*each) for each in holds)
    return Snapshot("vg", "origin", "snapshot-%d" % number, str(directory), "", False, 0, "ext4", "/", held)


def mount_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a snapshot's device be the directory that it is mounted on."""

    @contextmanager
    def there(device: str, _fs_type: str, _name: str) -> Iterator[str]:
        yield device

    monkeypatch.setattr(mounted, "enter_private_namespace", lambda: None)
    monkeypatch.setattr(mounted, "mounted_read_only", there)
    monkeypatch.setattr(mounted, "mounted_writable", there)
    for _disk in small_disk(str(tmp_path / "can-mount")):
        pass


def in_place_of_lvm(group: Group, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let LVM and the device mapper be the group's."""
    for name in ("volumes", "retag", "remove"):
        monkeypatch.setattr(volumes, name, getattr(group, name))
    monkeypatch.setattr(volumes, "settle", lambda: None)
    monkeypatch.setattr(dm, "Control", lambda: group)


class Group:
    """A volume group with one kept snapshot, that of `live`; it lists what is done to the snapshot.

    :ivar others: further volumes
    """

    def __init__(self, root: Path) -> None:
        for name in ("live", "frozen", "backups"):
            (root / name).mkdir()
        write(str(root / "frozen" / "rows"))
        self.dest = str(root / "backups")
        self.snapshot = snapshot(0, root / "frozen", (FILES, str(root / "live"), ""))
        self.done: List[str] = []
        self.others: List[LogicalVolume] = []
        self.reporter = Quiet()

    def __enter__(self) -> "Group":
        return self

    def __exit__(self, *_exc: object) -> None:
        pass

    def volume(self, name: str, *tags: str, origin: str = "", device: Tuple[int, int] = (253, 1)) -> LogicalVolume:
        return LogicalVolume(self.snapshot.vg, name, "u", "", "", "", 0, (), (), tags, *device, origin, "", 0.0, None, 1 << 30, 1 << 22, 0)

    def volumes(self) -> List[LogicalVolume]:
        made = self.volume(self.snapshot.name, *OWNER.tags(), "stillpoint.kept", origin=self.snapshot.origin)
        return [each for each in (made, *self.others) if "removed " + each.full_name not in self.done]

    def state(self, _name: str) -> Optional[dm.State]:
        return dm.State(False, False, "snapshot", "16/2097152 16")

    def retag(self, full_name: str, **_tags: Any) -> None:
        self.done.append("taken over")

    def remove(self, full_name: str) -> None:
        self.done.append("removed " + full_name)

    def asked(self, **changes: Any) -> copied.CopyRequest:
        return copied.CopyRequest(**{"dest": self.dest, "snapshots": (self.snapshot.as_dict(),), **changes})

    def copy(self, **changes: Any) -> Any:
        return copied.copy(self.asked(**changes), self.reporter)
