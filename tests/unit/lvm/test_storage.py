# SPDX-License-Identifier: GPL-3.0-or-later
"""Sizes, mounts, LVM's reports and our tags: what is computed from them."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
from _core.host import mounts, processes
from _core.host.errors import CommandError, StillpointError, UsageError
from _core.lvm import dm, layout, ownership, sizes, volumes
from _core.lvm.layout import check_pools, check_volume
from _core.lvm.targets import snapshot_name

MIB = 1024 * 1024
GIB = 1024 * MIB
EXTENT = 4 * MIB


def size(text: str, *, origin: int = 10 * GIB, free: int = 8 * GIB, own_writes: int = 0) -> int:
    return sizes.snapshot_size(sizes.parse(text), name="vg00/root", origin_size=origin, free=free, extent=EXTENT, own_writes=own_writes)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1g", GIB), ("512M", 512 * MIB), ("1.5GiB", 3 * GIB // 2), ("20%ORIGIN", 2 * GIB), ("50%free", 4 * GIB), ("auto", GIB)],
)
def test_a_size_comes_to_so_many_bytes(text: str, expected: int) -> None:
    assert size(text) == expected


def test_a_size_is_rounded_up_to_whole_extents() -> None:
    assert size("4097k") == 2 * EXTENT


@pytest.mark.parametrize("text", [512, "512", "512m", "0.5g"])
def test_a_bare_number_is_one_of_mebibytes_as_lvcreate_has_it(text: Any) -> None:
    assert sizes.parse(text).amount == 512 * sizes.MIB


@pytest.mark.parametrize("text", ["", "0", "0g", "1x", "-1g", "120%ORIGIN", "50%", "50%USED", "auto1"])
def test_what_is_no_size_is_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        sizes.parse(text)


def test_auto_counts_what_the_copy_itself_will_write_to_the_volume() -> None:
    assert size("auto", own_writes=3 * GIB) >= GIB + 3 * GIB


def test_a_snapshot_is_never_larger_than_it_can_use() -> None:
    assert size("8g", origin=GIB) <= sizes.largest_useful(GIB, EXTENT)


def test_a_group_without_room_is_refused_with_what_is_free_and_what_is_needed() -> None:
    with pytest.raises(StillpointError, match=r"vg00 has 512.0 MiB free and a snapshot of vg00/root needs 1.0 GiB"):
        size("1g", free=512 * MIB)


def test_a_full_snapshot_and_a_lost_one_are_told_from_a_valid_one() -> None:
    def fill(params: str, target: str = "snapshot") -> dm.Fill:
        return dm.fill(dm.State(False, False, target, params))

    assert fill("1024/2048 16") == dm.Fill(True, 512 * 1024, 1024 * 1024)
    assert fill("1024/2048 16").percent == 50.0
    for lost in ("Invalid", "Overflow", "2048/2048 16", ""):
        assert not fill(lost).valid
    assert not fill("1024/2048 16", target="linear").valid
    assert not dm.fill(None).valid


def test_a_thin_pool_is_read_with_how_full_it_is_and_whether_it_takes_writes() -> None:
    def pool(params: str) -> dm.Pool:
        return dm.pool(dm.State(False, False, "thin-pool", params))

    assert pool("7 118/1024 4096/16384 - rw discard_passdown queue_if_no_space - 256") == dm.Pool(True, 7, 25.0, 100 * 118 / 1024)
    assert not pool("7 118/1024 16384/16384 - out_of_data_space discard_passdown queue_if_no_space - 256").valid
    for lost in ("Fail", "Error", ""):
        assert pool(lost) == dm.Pool(False, -1, 100.0, 100.0)
    assert not dm.pool(None).valid


def test_a_snapshots_name_fits_where_device_mapper_has_room_for_one_and_is_refused_where_not() -> None:
    run_id = "20261122t020005-1a2b"
    assert snapshot_name("vg00", run_id, 0) == "stillpoint-20261122t020005-1a2b-0"
    short = snapshot_name("v" * 100, run_id, 0)
    assert short.startswith("stillpoint")
    assert len({short, snapshot_name("v" * 100, run_id, 1), snapshot_name("v" * 100, run_id + "0", 0)}) == 3
    assert len(dm.name("v" * 100, short, "cow")) <= 127
    assert snapshot_name("v-" * 33, run_id, 0) == short  # doubled dashes count
    with pytest.raises(StillpointError, match="the volume group v+ is too long"):
        snapshot_name("v" * 110, run_id, 0)


ROW = {
    "vg_name": "vg-0",
    "lv_name": "root",
    "lv_uuid": "u",
    "lv_path": "/dev/vg-0/root",
    "lv_dm_path": "/dev/mapper/vg--0-root",
    "lv_attr": "-wi-ao----",
    "lv_size": "5368709120",
    "lv_layout": "linear",
    "lv_role": "public",
    "lv_tags": "",
    "lv_kernel_major": "253",
    "lv_kernel_minor": "0",
    "origin": "",
    "pool_lv": "",
    "data_percent": "",
    "metadata_percent": "",
    "vg_free": "5364514816",
    "vg_extent_size": "4194304",
    "vg_missing_pv_count": "0",
}


def volume(**changes: str) -> volumes.LogicalVolume:
    return volumes.parse_report(json.dumps({"report": [{"lv": [{**ROW, **changes}]}]}))[0]


def test_a_report_of_lvs_is_read() -> None:
    root = volume()
    assert (root.full_name, root.dm_name, root.size, root.thin, root.is_snapshot) == ("vg-0/root", "vg--0-root", 5 * GIB, False, False)
    thin = volume(lv_layout="thin,sparse", pool_lv="pool", data_percent="12.50")
    assert (thin.thin, thin.data_percent) == (True, 12.5)


def test_an_answer_that_is_no_report_is_refused() -> None:
    with pytest.raises(StillpointError, match="not the JSON"):
        volumes.parse_report("WARNING: lvmlockd")


def test_a_volume_is_found_by_each_of_its_names_and_a_path_is_left_a_path() -> None:
    root = volume()
    for name in ("vg-0/root", "/dev/vg-0/root", "/dev/mapper/vg--0-root"):
        assert volumes.named([root], name) is root
    assert volumes.named([root], "/opt/processmaker") is None
    for name in ("vg-0/toor", "/dev/vg-0/toor"):
        with pytest.raises(UsageError, match="no logical volume"):
            volumes.named([root], name)


def test_a_snapshot_and_a_group_with_missing_disks_are_refused() -> None:
    check_volume(volume())
    with pytest.raises(StillpointError, match="itself a snapshot"):
        check_volume(volume(lv_role="public,snapshot,thicksnapshot", origin="root"))
    with pytest.raises(StillpointError, match="lacks 1 of its physical volumes"):
        check_volume(volume(vg_missing_pv_count="1"))


def test_an_origin_whose_name_leaves_no_room_for_the_layer_below_it_is_refused() -> None:
    check_volume(volume(lv_name="n" * 116))  # vg--0-…-real: 127
    with pytest.raises(StillpointError, match="is too long"):
        check_volume(volume(lv_name="n" * 117))
    check_volume(volume(lv_name="n" * 117, lv_layout="thin,sparse", pool_lv="pool"))  # has no such layer


def test_a_thin_pool_is_refused_when_the_backup_may_bring_it_near_its_end() -> None:
    def check(data: str = "50.00", metadata: str = "10.00", mapped: str = "40.00", **own_writes: int) -> None:
        pool = volume(lv_name="pool", lv_layout="thin,pool", lv_size=str(10 * GIB), data_percent=data, metadata_percent=metadata)
        thin = volume(lv_name="db", lv_layout="thin,sparse", pool_lv="pool", lv_size=str(10 * GIB), data_percent=mapped)
        elsewhere = volume(lv_name="backups", lv_layout="thin,sparse", pool_lv="pool", data_percent="10.00")
        check_pools([thin], {"vg-0/" + name: size for name, size in own_writes.items()}, [pool, thin, elsewhere])

    check()
    check(data="86.00")  # a tenth of the 4 GiB that the origin uses is 4 % of the pool
    with pytest.raises(StillpointError, match=r"vg-0/pool \(10.0 GiB\) is 86.5 % full and may get to 90.5 %.*lvextend -L \+\d+M vg-0/pool"):
        check(data="86.50")
    check(data="80.00", mapped="0.10")  # what a snapshot can keep is no more than what the origin uses
    for written_to in ("db", "backups"):
        with pytest.raises(StillpointError, match="may get to 104.0 %"):
            check(**{written_to: 5 * GIB})
    with pytest.raises(StillpointError, match="the metadata of the thin pool vg-0/pool is 80.5 % full"):
        check(metadata="80.50")
    with pytest.raises(StillpointError, match="does not say how full"):
        check(metadata="")


def test_a_snapshot_is_ours_by_its_tags_and_left_over_only_when_its_process_is_gone() -> None:
    mine = processes.this_process("20261122t020005-1a2b", "etrial")
    assert ownership.owner(mine.tags()) == mine
    assert mine.alive()
    dead = processes.Owner(mine.run_id, mine.job, mine.boot, mine.pid, mine.start + 1)  # the pid lives on as another process
    other_boot = processes.Owner(mine.run_id, mine.job, "0-0", mine.pid, mine.start)
    assert not dead.alive()
    assert not other_boot.alive()
    known = [
        volume(lv_name="foreign", lv_tags="daily"),
        volume(lv_name="alive", lv_tags=",".join(mine.tags())),
        volume(lv_name="dead", lv_tags=",".join(dead.tags())),
        volume(lv_name="kept", lv_tags=",".join([*dead.tags(), ownership.KEPT])),
    ]
    assert [found.name for found in ownership.find(known)] == ["dead"]
    assert [found.name for found in ownership.find(known, kept=True)] == ["dead", "kept"]
    assert ownership.find(known, run_id="another", kept=True) == []


def test_a_leftover_that_can_not_be_removed_does_not_keep_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = ",".join(processes.Owner("20261122t020005-1a2b", "etrial", "0-0", 1, 2).tags())
    known = [volume(lv_name="mounted", lv_tags=dead), volume(lv_name="free", lv_tags=dead)]
    removed = []

    def remove(name: str) -> None:
        if name.endswith("/mounted"):
            raise CommandError("lvremove failed: in use", ["lvremove"], 5)
        removed.append(name)

    monkeypatch.setattr(volumes, "volumes", lambda: known)
    monkeypatch.setattr(volumes, "settle", lambda: None)
    monkeypatch.setattr(volumes, "remove", remove)
    monkeypatch.setattr(ownership, "_REMOVE_TRIES", 1)
    with pytest.raises(StillpointError, match="the snapshot vg-0/mounted can't be removed"):
        ownership.clean()
    troubles = []
    assert [each["name"] for each in ownership.clean(on_trouble=troubles.append)] == ["free"]
    assert removed == ["vg-0/free"] and len(troubles) == 1


MOUNTINFO = """\
22 1 253:0 / / rw,noatime - ext4 /dev/mapper/vg00-root rw
31 22 253:5 / /srv/my\\040data rw - xfs /dev/mapper/vg00-data rw
32 22 253:5 /sub /var/lib/mysql rw - xfs /dev/mapper/vg00-data rw
"""


def test_mounts_are_read_with_their_escapes_undone() -> None:
    assert [(mount.mount_point, mount.root) for mount in mounts.table(MOUNTINFO)] == [("/", "/"), ("/srv/my data", "/"), ("/var/lib/mysql", "/sub")]
    assert mounts.mounted_below("/var", mounts.table(MOUNTINFO)) == ["/var/lib/mysql"]
    assert mounts.mounted_below("/var/lib/mysql", mounts.table(MOUNTINFO)) == []


def test_a_directory_that_is_mounted_onto_itself_hides_nothing_of_its_file_system() -> None:
    service = """\
40 22 253:0 /etc /etc ro - ext4 /dev/mapper/vg00-root rw
41 40 253:0 /etc/lvm /etc/lvm rw - ext4 /dev/mapper/vg00-root rw
42 40 253:0 /srv/other /etc/other rw - ext4 /dev/mapper/vg00-root rw
43 31 253:5 /in /srv/my\\040data/in rw - xfs /dev/mapper/vg00-data rw
"""
    found = mounts.table(MOUNTINFO + service)
    assert mounts.hidden_below("/etc", found) == ["/etc/other"]
    assert mounts.hidden_below("/srv", found) == ["/srv/my data"]
    assert mounts.mounted_below("/etc", found) == ["/etc/lvm", "/etc/other"]


def test_a_mount_point_that_fstab_names_and_nothing_is_mounted_at_is_found(tmp_path, monkeypatch) -> None:
    fstab = tmp_path / "fstab"
    monkeypatch.setattr(mounts, "FSTAB", str(fstab))
    known = mounts.table(MOUNTINFO)
    assert mounts.unmounted("/srv/db", known) is None
    fstab.write_text(
        "# /dev/a /srv/no ext4\n\nUUID=1 / ext4 defaults 0 1\n/dev/a /srv/my\\040data ext4 defaults\n"
        "/dev/b\t/srv/a\\040b\text4 noauto\n/dev/c none swap sw 0 0\n/dev/d swap swap sw\n/dev/e /var ext4\n"
    )
    assert [mounts.unmounted(path, known) for path in ("/srv/a b", "/srv/a b/mysql", "/var/log")] == ["/srv/a b", "/srv/a b", "/var"]
    for path in ("/srv/db", "/srv/no", "/srv/my data/mysql", "/srv/a bc", "/none", "/var/lib/mysql/shop"):  # the last is mounted below what is not
        assert mounts.unmounted(path, known) is None
    fstab.write_text("/dev/a /srv/my\\040data ext4 defaults\n/dev/b /srv/volumes/db ext4 defaults\n/dev/c /srv/volumes/usb ext4 noauto,user\n")
    assert mounts.unmounted("/srv/volumes", known) is None
    assert mounts.unmounted("/srv/volumes", known, below=True) == "/srv/volumes/db"
    assert mounts.unmounted("/srv/volumes/usb", known, below=True) == "/srv/volumes/usb"
    assert mounts.unmounted("/srv/my data", known, below=True) is None


def test_a_file_system_inside_a_path_has_to_be_named_beside_it(monkeypatch) -> None:
    inside = mounts.Mount(253, 0, "/", "/opt/data", "ext4", "x")
    monkeypatch.setattr(layout, "table", lambda: [inside])

    def located(role: str, path: str, *_more: object) -> layout.Located:
        return layout.Located(role, path, mounts.Place(path, inside, ""), volume())

    monkeypatch.setattr(layout, "_located", located)
    named = "name it too, beside /opt, and it is copied with it, or name it in exclude"
    with pytest.raises(StillpointError, match="/opt/data is a file system of its own inside /opt,.*: " + named):
        layout.locate([("files", "/opt")], [])
    assert len(layout.locate([("files", "/opt"), ("files", "/opt/data")], [])) == 2


def test_a_path_is_placed_below_the_root_of_its_file_system_through_symlinks_and_bind_mounts(tmp_path, monkeypatch) -> None:
    real = tmp_path / "real"
    (real / "tree").mkdir(parents=True)
    (tmp_path / "link").symlink_to(real)
    device = os.stat(str(real)).st_dev
    table = [
        mounts.Mount(os.major(device), os.minor(device), "/", "/", "ext4", "/dev/a"),
        mounts.Mount(os.major(device), os.minor(device), "/volume/sub", str(real), "ext4", "/dev/a"),
    ]
    where = mounts.place(str(tmp_path / "link" / "tree"), table)
    assert (where.path, where.below) == (str(real / "tree"), "volume/sub/tree")
    with pytest.raises(UsageError, match="does not exist"):
        mounts.place(str(tmp_path / "nowhere"), table)
