# SPDX-License-Identifier: GPL-3.0-or-later
"""The delivery of the agent, as a playbook has it done, on this host. One playbook runs; each test looks at a part of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any, Dict, List

import pytest
from _core import bundle
from _core.host.version import VERSION

pytest.importorskip("ansible")
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the agent is root's")

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))

Results = Dict[str, Dict[str, Any]]


def agent(name: str, check: bool = False, **options: Any) -> Dict[str, Any]:
    """Return the task that delivers the agent."""
    given = {"path": "{{ path }}", "interpreter": sys.executable, **options}
    return {"stillpoint.backup.agent": given, "register": name, "check_mode": check, "diff": True, "ignore_errors": True}


def look(name: str, path: str = "{{ path }}") -> Dict[str, Any]:
    """Return the task that looks at what lies there."""
    return {"ansible.builtin.stat": {"path": path}, "register": name}


def mode(text: str) -> Dict[str, Any]:
    """Return the task that changes the file's mode."""
    return {"ansible.builtin.file": {"path": "{{ path }}", "mode": text}}


def edit(expression: str) -> Dict[str, Any]:
    """Return the task that changes the file's bytes."""
    code = "import sys; name = sys.argv[1]; old = open(name, 'rb').read(); open(name, 'wb').write(%s)" % expression
    return {"ansible.builtin.command": {"argv": [sys.executable, "-c", code, "{{ path }}"]}}


OTHER_PYTHON = bundle.bytecode_version().replace("cpython", "cpythin")

STORY = [
    agent("foretold", check=True),
    look("after_foretold"),
    agent("first"),
    look("after_first"),
    {"ansible.builtin.command": "{{ path }} version", "register": "started"},
    agent("second"),
    agent("second_foretold", check=True),
    look("after_second"),
    mode("0644"),
    agent("of_wrong_mode"),
    look("after_wrong_mode"),
    edit("old[:-100] + b'x' + old[-99:]"),
    agent("damage_foretold", check=True),
    agent("damaged"),
    look("after_damaged"),
    {"ansible.builtin.file": {"path": "{{ path }}.new", "state": "touch"}},  # as an installation that was killed leaves it
    edit("old.replace(b'bytecode cpython-', b'bytecode cpythin-', 1)"),
    agent("of_another_python"),
    agent("does_not_start", interpreter="/bin/false"),
    agent("of_no_python", interpreter="/bin/true"),
    look("after_does_not_start"),
    {"ansible.builtin.find": {"paths": "{{ path | dirname }}"}, "register": "beside"},
    agent("removal_foretold", check=True, state="absent"),
    look("after_removal_foretold"),
    agent("removal", state="absent"),
    look("after_removal"),
    agent("second_removal", state="absent"),
    agent("wrong_option", state="there"),
    agent("into_a_directory", path="{{ path | dirname }}"),
    agent("removal_of_a_directory", path="{{ path | dirname }}", state="absent"),
    look("directory", "{{ path | dirname }}"),
    agent("below_nothing", path="{{ path | dirname }}/missing/stillpoint"),
]


@pytest.fixture(scope="module")
def results(tmp_path_factory: Any) -> Results:
    """Run the playbook and return what each of its tasks registered."""
    top = tmp_path_factory.mktemp("workstation")
    os.makedirs(str(top / "collections" / "ansible_collections" / "stillpoint"))
    os.symlink(ROOT, str(top / "collections" / "ansible_collections" / "stillpoint" / "backup"))
    (top / "sbin").mkdir()
    config, playbook, answer = top / "ansible.cfg", top / "play.yml", top / "results.json"
    config.write_text("[defaults]\nhome = %s\ncollections_path = %s\n" % (top / "home", top / "collections"))
    names = [task["register"] for task in STORY if "register" in task]
    content = "{{ {%s} | to_json }}" % ", ".join("'%s': %s" % (name, name) for name in names)
    play = {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "vars": {"path": str(top / "sbin" / "stillpoint"), "ansible_python_interpreter": sys.executable},
        "tasks": [*STORY, {"ansible.builtin.copy": {"content": content, "dest": str(answer)}}],
    }
    playbook.write_text(json.dumps([play]))
    command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(playbook)]
    done = subprocess.run(command, env={**os.environ, "ANSIBLE_CONFIG": str(config)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    registered: Results = json.loads(answer.read_text())
    return registered


def lines(result: Dict[str, Any], side: str) -> List[str]:
    """Return one side of a diff."""
    text: str = result["diff"][side]
    return text.splitlines()


def test_the_agent_is_put_in_place_with_bytecode_of_the_host_and_runs(results: Results) -> None:
    first = results["first"]
    assert first["changed"]
    assert first["version"] == VERSION
    assert first["checksum"] == bundle.checksum(bundle.build(sys.executable))
    assert first["bytecode"] == bundle.bytecode_version()
    there = results["after_first"]["stat"]
    assert there["size"] > 2 * len(bundle.build())
    assert (there["mode"], there["pw_name"], there["gr_name"]) == ("0755", "root", "root")
    assert results["started"]["stdout"] == "stillpoint %s" % VERSION


def test_a_second_time_changes_nothing(results: Results) -> None:
    for name in ("second", "second_foretold"):
        assert not results[name]["changed"]
        assert lines(results[name], "before") == lines(results[name], "after")
    assert results["after_second"]["stat"]["inode"] == results["after_first"]["stat"]["inode"]


def test_check_mode_and_diff_foretell_what_comes_and_nothing_changes(results: Results) -> None:
    foretold = results["foretold"]
    assert foretold["changed"]
    assert not results["after_foretold"]["stat"]["exists"]
    assert lines(foretold, "before") == []
    assert lines(foretold, "after")[0] == "version %s" % VERSION
    assert foretold["diff"] == results["first"]["diff"]


def test_a_wrong_mode_is_put_right_and_the_diff_shows_just_that(results: Results) -> None:
    result = results["of_wrong_mode"]
    assert result["changed"]
    before, after = set(lines(result, "before")), set(lines(result, "after"))
    assert (before - after, after - before) == ({"mode 0644"}, {"mode 0755"})
    assert results["after_wrong_mode"]["stat"]["mode"] == "0755"
    assert results["after_wrong_mode"]["stat"]["inode"] == results["after_first"]["stat"]["inode"]


def test_an_agent_that_was_changed_or_is_of_another_python_is_made_anew(results: Results) -> None:
    for name in ("damage_foretold", "damaged"):
        assert results[name]["changed"], name
        assert lines(results[name], "before")[0] == "not an agent as it was put here"
    other = results["of_another_python"]
    before, after = set(lines(other, "before")), set(lines(other, "after"))
    assert other["changed"]
    assert (before - after, after - before) == ({"bytecode " + OTHER_PYTHON}, {"bytecode " + bundle.bytecode_version()})
    assert results["after_damaged"]["stat"]["checksum"] == results["after_first"]["stat"]["checksum"]


def test_what_an_installation_that_was_killed_left_is_removed(results: Results) -> None:
    assert [os.path.basename(each["path"]) for each in results["beside"]["files"]] == ["stillpoint"]


def test_an_agent_that_does_not_start_never_replaces_one_that_does(results: Results) -> None:
    assert results["does_not_start"]["failed"]
    assert "does not start on the host with /bin/false and was not put in place" in results["does_not_start"]["msg"]
    assert "does not start on the host with /bin/true" in results["of_no_python"]["msg"]
    assert results["after_does_not_start"]["stat"]["checksum"] == results["after_first"]["stat"]["checksum"]


def test_absent_removes_the_file_once_and_check_mode_does_not(results: Results) -> None:
    assert results["removal_foretold"]["changed"]
    assert lines(results["removal_foretold"], "after") == []
    assert results["after_removal_foretold"]["stat"]["exists"]
    assert results["removal"]["changed"]
    assert not results["after_removal"]["stat"]["exists"]
    assert not results["second_removal"]["changed"]


def test_a_directory_is_neither_filled_nor_removed(results: Results) -> None:
    for name in ("into_a_directory", "removal_of_a_directory"):
        assert results[name]["failed"] and "is a directory" in results[name]["msg"]
    assert results["directory"]["stat"]["isdir"]


def test_a_directory_that_is_missing_is_named(results: Results) -> None:
    assert results["below_nothing"]["failed"] and "/sbin/missing" in results["below_nothing"]["msg"]
    assert "unexpected" not in results["below_nothing"]["msg"]


def test_a_wrong_option_is_refused(results: Results) -> None:
    assert results["wrong_option"]["failed"] and "there" in results["wrong_option"]["msg"]
