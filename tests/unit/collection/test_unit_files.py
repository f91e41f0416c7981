# SPDX-License-Identifier: GPL-3.0-or-later
"""The role's files and units, brought onto this host by the module's own code, with a systemctl that stands in for systemd."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import pytest
from fake_systemctl import Systemctl

pytest.importorskip("ansible")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the files are root's")

from ansible_collections.stillpoint.backup.plugins.filter.client_files import client_files  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.module_utils import _unit_files  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import StillpointError  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.module_utils._unit_files import File, Unit, Wanted, ensure  # noqa: E402

MARK = "Written by the role"
ARCHIVE = "stillpoint-archive@told.service"
TOLD = {"name": "told", "repository": "/usr/local/backups", "schedule": "02:00", "verify": {"schedule": "weekly"}, "binlog": {"archive": True}}
PLAIN = {"name": "plain", "files": ["/opt"], "repository": "/backups", "schedule": "03:00"}


class Host:
    def __init__(self, top: Path) -> None:
        self.top, self.units, self.jobs = top, top / "units", top / "etc/jobs"
        self.units.mkdir()
        self.systemctl = Systemctl(self.units, top)
        (top / "agent").write_text("the agent")

    def wanted(self, *jobs: Mapping[str, Any], note: str = "") -> Wanted:
        """Return what jobs have on the host; in place of a template's text each file says what it was made from."""
        paths = {"job_directory": str(self.jobs), "unit_directory": str(self.units), "udev_rules": str(self.top / "rules"), "agent": str(self.top / "agent")}
        layout = client_files(jobs, **paths)
        searched = tuple(str(self.top / each) for each in ("etc/jobs/*.yml", "units/stillpoint*", "units/stillpoint*.d/*.conf", "rules"))
        return Wanted(
            MARK,
            str(self.units),
            (str(self.top / "etc"), str(self.jobs)),
            searched,
            (str(self.units / "*.wants/stillpoint*"),),
            tuple(self._file(each, note) for each in layout["files"]),
            tuple(Unit(each["name"], each.get("state", "started"), tuple(each.get("reads", ()))) for each in layout["units"]),
        )

    def _file(self, each: Dict[str, Any], note: str) -> File:
        install = "[Install]\nWantedBy=%s\n" % ("timers.target" if each["path"].endswith(".timer") else "multi-user.target")
        text = "# %s\n%s\n%s%s" % (MARK, sorted(each.get("vars", {}).items()), note, install)
        return File(each["path"], text.encode(), int(each.get("mode", "0644"), 8), bool(each.get("secret")), tuple(each.get("read_only", ())))

    def ensure(self, wanted: Wanted, **options: Any) -> List[str]:
        return ensure(wanted, **{"check": False, "ask": self.systemctl, **options}).actions

    def names(self) -> List[str]:
        return sorted(str(path.relative_to(self.top)) for path in self.top.rglob("*") if path.is_file() and not path.is_symlink())


@pytest.fixture
def host(tmp_path: Path) -> Host:
    """A host with two jobs."""
    host = Host(tmp_path)
    host.ensure(host.wanted(TOLD, PLAIN))
    host.systemctl.told()
    return host


def test_what_is_as_it_shall_be_is_left_alone(host: Host) -> None:
    before = {path: path.lstat().st_ctime_ns for path in host.top.rglob("*") if path.is_file()}
    assert host.ensure(host.wanted(TOLD, PLAIN)) == []
    assert {path: path.lstat().st_ctime_ns for path in host.top.rglob("*") if path.is_file()} == before and host.systemctl.told() == []


@pytest.mark.parametrize("jobs", [(TOLD, {**PLAIN, "schedule": "04:00"}), (PLAIN,), ({**TOLD, "binlog": {"archive": False}},)])
def test_check_mode_announces_exactly_what_is_then_done(host: Host, jobs: Sequence[Mapping[str, Any]]) -> None:
    before = host.names()
    announced = ensure(host.wanted(*jobs), check=True, ask=host.systemctl)
    assert host.names() == before and host.systemctl.told() == []
    done = ensure(host.wanted(*jobs), check=False, ask=host.systemctl)
    assert announced == done and done.actions
    assert host.ensure(host.wanted(*jobs)) == []


def interruptions(monkeypatch: pytest.MonkeyPatch) -> List[int]:
    """Have each call that changes something count, and let the one that is named be the last."""
    left = [10**6]

    def counted(function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return function(*arguments, **options)

        return call

    for name in ("open", "unlink", "replace", "rmdir", "makedirs", "chmod", "fsync"):
        monkeypatch.setattr(_unit_files.os, name, counted(getattr(os, name)))
    monkeypatch.setattr(Systemctl, "__call__", counted(Systemctl.__call__))
    return left


def test_wherever_a_deployment_broke_off_the_next_one_makes_up_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unit_files.os, "fsync", lambda _descriptor: None)  # a power cut can't be had here, and it takes its time
    for steps in range(10**3):
        (tmp_path / str(steps)).mkdir()
        one = Host(tmp_path / str(steps))
        one.ensure(one.wanted(TOLD, PLAIN))
        changed = one.wanted({**TOLD, "schedule": "05:00", "name": "new"}, {**PLAIN, "schedule": "04:00"}, note="changed\n")
        with pytest.MonkeyPatch.context() as patch:
            left = interruptions(patch)
            left[0] = steps
            try:
                one.ensure(changed)
                ended = True
            except KeyboardInterrupt:
                ended = False
        if not ended:
            one.ensure(changed)
        assert [name for name in one.names() if "told" in name or "stillpoint-new" in name] == []
        assert all(Path(file.path).read_bytes() == file.content for file in changed.files if file.needed)
        known = one.systemctl.known
        assert set(known["started"]) == {unit.name for unit in changed.units if unit.state == "started"}
        assert known["read"] >= max(path.lstat().st_mtime for path in one.units.glob("stillpoint*"))
        assert ensure(changed, check=True, ask=one.systemctl).actions == []
        if ended:
            break
    assert steps > 60


def test_a_lost_reload_and_a_stopped_timer_are_made_up_for(host: Host) -> None:
    known = host.systemctl.known
    del known["started"]["stillpoint@told.timer"]
    host.systemctl.known = {**known, "read": 0}
    assert host.ensure(host.wanted(TOLD, PLAIN)) == ["start stillpoint@told.timer"]
    assert host.systemctl.told() == ["daemon-reload", "start stillpoint@told.timer"]


def test_an_archive_is_restarted_for_what_it_reads_alone(host: Host) -> None:
    wanted = host.wanted(TOLD, PLAIN)
    os.utime(host.top / "agent")  # as a deployment that broke off after it had put the agent there
    assert host.ensure(wanted, check=True) == host.ensure(wanted) == ["restart " + ARCHIVE]
    os.utime(host.jobs / "plain.yml")
    assert host.ensure(wanted) == []
    assert host.ensure(host.wanted({**TOLD, "keep": {"last": 3}}, PLAIN)) == ["write %s" % (host.jobs / "told.yml"), "restart " + ARCHIVE]
    assert host.systemctl.told() == ["restart " + ARCHIVE] * 2


def test_a_clock_that_was_set_back_restarts_no_archive_again_and_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    now = _unit_files.time.time()
    monkeypatch.setattr(_unit_files.time, "time", lambda: now - 3600)
    assert host.ensure(host.wanted(TOLD, PLAIN)) == []


def test_what_is_not_ours_stays_and_what_lost_owner_or_mode_gets_them_back(host: Host) -> None:
    (host.units / "stillpoint@theirs.timer").write_text("[Timer]\nOnCalendar=daily\n")
    (host.units / "stillpoint@told.service.d/theirs.conf").write_text("[Service]\n")
    os.chmod(host.jobs / "plain.yml", 0o666)
    os.chown(host.jobs, 1, 1)
    changes = ensure(host.wanted(PLAIN), check=False, ask=host.systemctl)
    assert (host.jobs / "plain.yml").stat().st_mode & 0o777 == 0o600 and host.jobs.stat().st_uid == 0
    left = ["units/stillpoint@theirs.timer", "units/stillpoint@told.service.d/theirs.conf"]
    assert [name for name in host.names() if "told" in name or "theirs" in name] == left
    assert [(each["before"], each["after"]) for each in changes.diff if "mode 0666" in each.get("before", "")] == [
        ("owner root:root\nmode 0666\n", "owner root:root\nmode 0600\n")
    ]


def test_what_a_job_held_before_it_had_nobody_to_tell_is_no_more_shown_than_what_it_holds_now(host: Host) -> None:
    (host.jobs / "plain.yml").write_text("# %s\nname: plain\nnotify: {ping_url: https://f00d}\n" % MARK)
    changes = ensure(host.wanted(TOLD, PLAIN), check=True, ask=host.systemctl)
    assert changes.actions == ["write %s" % (host.jobs / "plain.yml")] and "f00d" not in str(changes)
    secret = ensure(host.wanted({**TOLD, "notify": {"ping_url": "https://f00d"}}, PLAIN), check=True, ask=host.systemctl)
    assert "write %s" % (host.jobs / "told.yml") in secret.actions and "f00d" not in str(secret)


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(host: Host) -> None:
    (host.top / "other").write_text("other")
    (host.units / "stillpoint@.service").unlink()
    (host.units / "stillpoint@.service").symlink_to(host.top / "other")
    assert host.ensure(host.wanted(TOLD, PLAIN))[0] == "write %s" % (host.units / "stillpoint@.service")
    assert (host.top / "other").read_text() == "other" and not (host.units / "stillpoint@.service").is_symlink()


def test_only_what_leads_below_a_directory_that_is_read_only_for_services_is_opened_for_them(host: Host) -> None:
    assert [name for name in host.names() if name.endswith(".conf")] == [
        "units/%s@told.service.d/stillpoint.conf" % unit for unit in ("stillpoint-archive", "stillpoint-verify", "stillpoint")
    ]
    (host.top / "link").symlink_to("/usr/share")
    host.ensure(host.wanted({**PLAIN, "repository": str(host.top / "link/backups")}))
    assert "units/stillpoint@plain.service.d/stillpoint.conf" in host.names()


def test_everything_of_ours_is_stopped_and_later_removed(host: Host) -> None:
    nothing = replace(host.wanted(), files=(), units=())
    before = host.names()
    every = ["stillpoint-archive@told.service", "stillpoint-clean.service", "stillpoint-verify@told.timer", "stillpoint@plain.timer", "stillpoint@told.timer"]
    assert host.ensure(nothing, remove=False) == ["stop and disable " + name for name in every]
    assert host.names() == before and host.systemctl.told() == ["stop " + " ".join(every), "disable " + " ".join(every), "daemon-reload"]
    assert host.ensure(nothing, remove=False) == []
    host.ensure(nothing)
    assert host.names() == ["agent", "log", "state.json"] and host.ensure(nothing) == []


def test_a_second_deployment_at_the_same_time_is_refused_when_the_first_does_not_end(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_unit_files, "_LOCK_TIMEOUT", 0.3)
    with _unit_files._alone(str(host.units)), pytest.raises(StillpointError, match="another deployment has been at work"):
        host.ensure(host.wanted(PLAIN))


def test_what_can_not_be_written_is_named(host: Host) -> None:
    (host.jobs / "new.yml").mkdir()
    with pytest.raises(StillpointError, match="etc/jobs/new.yml can't be"):
        host.ensure(host.wanted(TOLD, PLAIN, {**PLAIN, "name": "new"}))
