# SPDX-License-Identifier: GPL-3.0-or-later
"""How a module ends when something goes wrong behind its door."""

from __future__ import annotations

import os
import signal
from typing import Any, Dict, List

import pytest
import yaml

pytest.importorskip("ansible")

from ansible_collections.stillpoint.backup.plugins.module_utils import _module  # noqa: E402
from ansible_collections.stillpoint.backup.plugins.module_utils._core.host.errors import CommandError, NotNowError, StillpointError, Stopped  # noqa: E402


class Module:
    """What of AnsibleModule the door uses."""

    def fail_json(self, **result: Any) -> None:
        raise Failed(result)


class Failed(SystemExit):
    def __init__(self, result: Dict[str, Any]) -> None:
        super().__init__(1)
        self.result = result


@pytest.fixture(autouse=True)
def _handlers_as_before() -> Any:
    before = {each: signal.getsignal(each) for each in _module._SIGNALS}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def through_the_door(error: BaseException) -> Dict[str, Any]:
    with pytest.raises(Failed) as failed, _module.door(Module()):  # type: ignore[arg-type]
        raise error
    return failed.value.result


def test_a_sentence_is_all_there_is_to_an_ordinary_failure() -> None:
    assert through_the_door(StillpointError("the disk is full: free some space")) == {"msg": "the disk is full: free some space", "exit_code": 1}


def test_a_server_that_is_too_busy_can_be_told_from_a_failure() -> None:
    assert through_the_door(NotNowError("later"))["exit_code"] == 75


def test_a_program_that_failed_is_named_in_values_of_its_own() -> None:
    result = through_the_door(CommandError("lvs failed: no", ["lvs", "-a"], 5, "  no\n"))
    assert result == {"msg": "lvs failed: no", "exit_code": 1, "cmd": ["lvs", "-a"], "rc": 5, "stderr": "  no\n"}


def test_a_fault_of_ours_is_called_one() -> None:
    result = through_the_door(KeyError("volume"))
    assert "fault in stillpoint.backup" in result["msg"]
    assert "KeyError" in result["exception"]


def test_a_signal_lets_what_was_opened_be_closed_and_a_second_one_does_not_disturb_that() -> None:
    closed = []
    with pytest.raises(Failed) as failed, _module.door(Module()):  # type: ignore[arg-type]
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            os.kill(os.getpid(), signal.SIGHUP)
            closed.append(True)
    assert closed
    assert "SIGTERM" in failed.value.result["msg"]


def test_a_signal_says_of_what_was_done_by_then_only_what_is_known() -> None:
    stopped = Stopped("SIGTERM")
    assert through_the_door(stopped) == {"msg": "stopped by SIGTERM; what had been opened was closed", "exit_code": 1}
    stopped.outcome = "the copy /b/2026 was complete by then, and stays"
    assert through_the_door(stopped)["msg"] == "stopped by SIGTERM; what had been opened was closed; the copy /b/2026 was complete by then, and stays"


def test_a_module_that_is_done_leaves_by_itself() -> None:
    with pytest.raises(SystemExit) as left, _module.door(Module()):  # type: ignore[arg-type]
        raise SystemExit(0)
    assert not isinstance(left.value, Failed)


def test_what_a_restore_warns_of_is_one_of_ansibles_own_warnings_and_no_value_of_its_name() -> None:
    from ansible_collections.stillpoint.backup.plugins.modules import backup_restore

    said: Dict[str, Any] = {"warnings": []}

    class Restore:
        def warn(self, text: str) -> None:
            said["warnings"].append(text)

        def exit_json(self, **result: Any) -> None:
            said["result"] = result

    backup_restore.finish(Restore(), "etrial", {"generation": "2026", "warnings": ["its proof failed"], "changed": False})  # type: ignore[arg-type]
    assert said == {"warnings": ["its proof failed"], "result": {"changed": True, "job": "etrial", "generation": "2026"}}


def test_a_restore_asks_the_agent_in_its_own_words() -> None:
    from ansible_collections.stillpoint.backup.plugins.modules import backup_restore

    def words(**given: Any) -> List[str]:
        options: Dict[str, Any] = dict.fromkeys(backup_restore.OWN.options)
        return backup_restore.command({**options, **given}, "etrial")

    assert words() == ["restore", "etrial"]
    assert words(path="/opt/a b") == ["restore", "etrial", "--path=/opt/a b"]
    elsewhere = words(generation="2026", from_host="db1", to="/look", only="database", until_time="2026-11-22 14:03:07Z")
    assert elsewhere == ["restore", "etrial", "2026", "--from-host=db1", "--to=/look", "--only=database", "--until=2026-11-22 14:03:07Z"]
    assert words(resume_replication_and_events=True) == ["restore", "etrial", "--resume-replication-and-events"]
    assert words(table="shop.orders", **{"as": "shop.before"}) == ["restore", "etrial", "--table=shop.orders", "--as=shop.before"]
    moments = {"until_time": "--until", "until_gtid": "--until-gtid", "before_gtid": "--before-gtid", "until_position": "--until-position"}
    assert [words(**{name: "X"})[2:] for name in moments] == [[option + "=X"] for option in moments.values()]


def test_the_command_knows_each_option_that_the_module_of_a_restore_hands_on() -> None:
    from _core.agent import arguments
    from ansible_collections.stillpoint.backup.plugins.modules import backup_restore

    parts = {"only": "files", "path": "/srv", "database": "d", "table": "d.t"}
    for name, option in backup_restore.OPTIONS.items():
        words = ["restore", "etrial", "%s=%s" % (option, parts.get(name, "X"))]
        assert "X" in vars(arguments.parse(words)).values() or parts[name] in vars(arguments.parse(words)).values()
    told = set(backup_restore.OPTIONS) | {"generation", "resume_replication_and_events"}
    assert set(backup_restore.OWN.options) - told == {"job", "timeout", "poll_interval", "reconnect_timeout"}


def test_the_playbook_hands_on_the_same_options_to_the_plan_and_to_the_restore() -> None:
    from ansible_collections.stillpoint.backup.plugins.modules import backup_restore

    with open(os.path.join(os.path.dirname(__file__), "..", "..", "..", "playbooks", "restore.yml"), encoding="utf-8") as file:
        tasks = yaml.safe_load(file)[0]["tasks"]
    planned, done = (each["stillpoint.backup.backup_restore"] for each in tasks if "stillpoint.backup.backup_restore" in each)
    assert set(planned) == set(done) == set(backup_restore.OPTIONS) | {"job", "generation", "resume_replication_and_events"}
    del planned["job"], planned["generation"], done["job"], done["generation"]
    assert planned == done
