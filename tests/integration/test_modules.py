# SPDX-License-Identifier: GPL-3.0-or-later
"""The modules in a play, as a playbook author uses them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from subprocess import CompletedProcess

import examples
import pytest
from etrial import Etrial

Playbook = Callable[..., "CompletedProcess[str]"]

CHECK = """
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - stillpoint.backup.mysql_quiesce_snapshot:
        volumes: [/opt/processmaker/shared, vg00/root]
      register: point
    - ansible.builtin.assert:
        that:
          - point is changed
          - point.run_id is none
          - point.lock.method == 'backup_stage'
          - point.snapshots | length == 1
          - point.snapshots[0].origin == 'root'
          - point.snapshots[0].size_bytes > 0
          - "'binary logging is off: the backup has no coordinates' in point.warnings"
          - point.snapshots[0].holds | map(attribute='path') | list == ['/var/lib/mysql', '/opt/processmaker/shared']
    - stillpoint.backup.lvm_snapshot_rsync:
        src: [/opt/processmaker/shared]
        dest: /backups
      register: copy
    - ansible.builtin.assert:
        that: [copy is changed, copy.generation is none, copy.bytes > 0, "'/backups lies on vg00/root, which is backed up' in copy.warnings | first"]
    - stillpoint.backup.lvm_snapshot_rsync:
        point: "{{ point }}"
        dest: /backups/that/a/task/before/has/planned
      register: copy
    - ansible.builtin.assert:
        that: [copy is changed, copy.bytes > 0, "'has to be there by then' in copy.warnings | first"]
"""

FAILURES = """
- hosts: all
  become: true
  gather_facts: false
  tasks:
    - stillpoint.backup.mysql_quiesce_snapshot:
        login_user: root
        login_password: wrong-and-secret
        login_host: 127.0.0.1
      register: login
      ignore_errors: true
    - ansible.builtin.assert:
        that: [login is failed, "'check the user and the password' in login.msg", "'wrong-and-secret' not in login | to_json"]
    - stillpoint.backup.mysql_quiesce_snapshot:
        snapshot_size: 900g
      register: room
      ignore_errors: true
    - ansible.builtin.assert:
        that: [room is failed, "'vg00 has' in room.msg"]
    - stillpoint.backup.lvm_snapshot_rsync:
        src: [/opt/processmaker/shared]
        dest: /backups/none
      register: dest
      ignore_errors: true
    - ansible.builtin.assert:
        that: [dest is failed, "'/backups/none does not exist' in dest.msg", dest.exit_code == 2]
"""


@pytest.mark.parametrize("module", ["mysql_quiesce_snapshot", "lvm_snapshot_rsync"])
def test_the_examples_run_as_they_stand(etrial: Etrial, playbook: Playbook, module: str) -> None:
    playbook(examples.playbook(module))
    assert etrial.volumes() == {"root"}
    assert etrial.left_behind() == []


@pytest.mark.state("binlog")
def test_the_examples_of_the_agents_modules_run_as_they_stand(etrial: Etrial, playbook: Playbook) -> None:
    etrial.small_job()
    for module in ("backup_run", "backup_info"):
        playbook(examples.playbook(module))
    etrial.small_job("binlog: {archive: true}")  # without its service, which backup_info's example would name
    etrial.sql("CREATE DATABASE before_the_mistake")
    time.sleep(2)
    now = etrial.machine.run(["date", "-u", "+%Y-%m-%d %H:%M:%SZ"]).stdout.strip()
    time.sleep(2)
    etrial.sql("CREATE DATABASE the_mistake")
    mistake = etrial.sql("SELECT @@GLOBAL.gtid_binlog_pos").split()[-1]
    etrial.stillpoint("archive", "etrial", "--once")
    playbook(examples.playbook("backup_restore"), "-e", json.dumps({"second_of_the_mistake": now, "gtid_of_the_mistake": mistake}))
    before = etrial.machine.run("ls /backups/before/mysql").stdout.split()
    assert "before_the_mistake" in before and "the_mistake" not in before
    assert etrial.left_behind() == []
    assert etrial.write_takes() < 10


def test_check_mode_says_what_would_happen_and_changes_nothing(etrial: Etrial, playbook: Playbook) -> None:
    playbook(CHECK, "--check")
    assert etrial.volumes() == {"root"}
    assert etrial.machine.run("ls -A /backups").stdout == ""


def test_a_failure_is_one_sentence_and_leaves_nothing(etrial: Etrial, playbook: Playbook) -> None:
    playbook(FAILURES)
    assert etrial.volumes() == {"root"}
