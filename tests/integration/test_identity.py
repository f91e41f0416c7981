# SPDX-License-Identifier: GPL-3.0-or-later
"""Whose backups these are, on a machine that gets another name and another identity, and what systemd says of a job's timer."""

from __future__ import annotations

import json
import os

from etrial import Etrial

TIMER = """
[Timer]
OnCalendar=02:00
RandomizedDelaySec=1h
Persistent=true
[Install]
WantedBy=timers.target
"""


def test_a_renamed_machine_goes_on_with_its_backups_another_one_is_refused_and_a_timer_that_is_off_is_told(etrial: Etrial) -> None:
    machine = etrial.machine
    etrial.small_job('schedule: "02:00"')
    first = etrial.backup()
    machine.run("hostnamectl set-hostname renamed")
    said = etrial.stillpoint("plan", "etrial").stdout
    assert f"1 backups of this machine lie in {os.path.dirname(first['path'])}, from when it was called" in said and "`stillpoint adopt etrial`" in said
    second = etrial.backup()
    assert second["path"].startswith("/backups/renamed/etrial/")
    etrial.stillpoint("adopt", "etrial", "--yes")
    third = etrial.backup()
    assert [each["generation"] for each in etrial.generations()] == [each["generation"] for each in (third, second, first)]
    assert third["copy"]["bytes_transferred"] < first["copy"]["bytes_transferred"] / 5
    assert not any("adopt" in warning for warning in third["warnings"])

    machine.run("od -An -N16 -tx1 /dev/urandom | tr -d ' \\n' > /etc/machine-id")
    for command in ("plan", "run"):
        done = etrial.stillpoint(command, "etrial", check=False)
        assert done.rc == 1 and "are of another machine of this name (machine-id " in done.stderr, done.stderr
    etrial.stillpoint("adopt", "etrial", "--yes")
    etrial.backup()

    machine.run("cat > /etc/systemd/system/stillpoint@etrial.timer", input=TIMER)
    machine.run("printf '[Service]\\nType=oneshot\\nExecStart=/bin/true\\n' > /etc/systemd/system/stillpoint@.service")
    machine.run("systemctl daemon-reload && systemctl enable --now stillpoint@etrial.timer")
    assert etrial.stillpoint("status").rc == 0
    machine.run("systemctl disable --now stillpoint@etrial.timer")
    done = etrial.stillpoint("status", "--json", check=False)
    (facts,) = json.loads(done.stdout)
    off = "stillpoint@etrial.timer is disabled and starts nothing: systemctl enable --now stillpoint@etrial.timer"
    assert (done.rc, facts["overdue"], facts["wrong"]) == (1, None, [off])
    machine.run("date -s '+40 days'")
    done = etrial.stillpoint("status", check=False)
    assert done.rc == 1 and done.stdout.splitlines()[1].startswith("OVERDUE") and "etrial: overdue: no backup since " in done.stdout
