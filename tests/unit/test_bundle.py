# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import importlib.util
import io
import os
import shutil
import subprocess
import sys
import zipfile
from typing import Any

from _core import bundle
from _core.host.version import VERSION

CORE = os.path.dirname(bundle.__file__)


def test_the_same_sources_give_the_same_bytes_wherever_and_whenever_they_lie(tmp_path: Any) -> None:
    elsewhere = str(tmp_path / "installed" / "_core")
    shutil.copytree(CORE, elsewhere, ignore=shutil.ignore_patterns("__pycache__"))
    for directory, _directories, files in os.walk(elsewhere):
        for name in files:
            os.chmod(os.path.join(directory, name), 0o600)
            os.utime(os.path.join(directory, name), (0, 0))
    assert built_from(elsewhere) == bundle.build()


def built_from(core: str) -> bytes:
    """Return what a copy of the sources builds, in a process of its own."""
    code = "import sys; sys.path.insert(0, %r); from _core import bundle; sys.stdout.buffer.write(bundle.build())" % os.path.dirname(core)
    return subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout


def test_a_changed_source_changes_the_bytes(tmp_path: Any) -> None:
    elsewhere = str(tmp_path / "_core")
    shutil.copytree(CORE, elsewhere)
    assert built_from(elsewhere) == bundle.build()
    with open(os.path.join(elsewhere, "host", "errors.py"), "a") as file:
        file.write("# changed\n")
    assert built_from(elsewhere) != bundle.build()


def test_the_agent_is_one_file_that_runs_without_its_sources(tmp_path: Any) -> None:
    agent = tmp_path / "stillpoint"
    agent.write_bytes(bundle.build())
    shown = subprocess.run([sys.executable, "-I", str(agent), "version"], stdout=subprocess.PIPE, text=True, cwd="/", check=True)
    assert shown.stdout == "stillpoint %s\n" % VERSION


def test_the_agent_names_its_interpreter_and_isolates_it() -> None:
    assert bundle.build().startswith(b"#!/usr/bin/python3 -I\nPK")
    assert bundle.build("/usr/bin/python3.11").startswith(b"#!/usr/bin/python3.11 -I\nPK")


def test_the_agent_holds_the_sources_and_nothing_else() -> None:
    with zipfile.ZipFile(io.BytesIO(bundle.build())) as archive:
        names = archive.namelist()
        assert archive.testzip() is None
    assert "stillpoint/agent/main.py" in names and "stillpoint/mysql/account.py" in names
    assert names == ["__main__.py", *sorted(names[1:])]
    assert not [name for name in names if not name.endswith(".py")]


def test_a_python_that_is_too_old_is_told_so_in_words_that_it_can_read() -> None:
    main = bundle._MAIN
    assert main.index("version_info") < main.index("from stillpoint")
    compile(main, "main", "exec")
    assert 'f"' not in main and "annotations" not in main


def written(tmp_path: Any, content: bytes, name: str = "stillpoint") -> str:
    """Write an agent and return its path."""
    path = tmp_path / name
    path.write_bytes(content)
    return str(path)


def code_from(agent: str) -> str:
    """Return where the agent's code says that it comes from."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); from stillpoint.agent.main import main; print(main.__code__.co_filename)"
    return subprocess.run([sys.executable, "-I", "-c", code, agent], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def version_of(agent: str) -> str:
    return subprocess.run([sys.executable, "-I", agent, "version"], stdout=subprocess.PIPE, text=True, check=True).stdout


def test_bytecode_is_taken_where_it_is_of_this_python_and_the_sources_elsewhere(tmp_path: Any) -> None:
    sources = bundle.build()
    compiled = bundle.compiled(sources, "/where/it/will/lie")
    other = compiled.replace(importlib.util.MAGIC_NUMBER, (1).to_bytes(2, "little") + b"\r\n")
    for content, place in ((sources, ""), (compiled, "/where/it/will/lie"), (other, "")):
        agent = written(tmp_path, content)
        assert code_from(agent) == (place or agent) + "/stillpoint/agent/main.py"
        assert version_of(agent) == "stillpoint %s\n" % VERSION


def test_a_failure_inside_of_bytecode_is_shown_with_its_source(tmp_path: Any) -> None:
    agent = written(tmp_path, bundle.compiled(bundle.build(), "/where/it/will/lie"))
    done = subprocess.run([sys.executable, "-I", agent, "frobnicate", "--debug"], stderr=subprocess.PIPE, text=True)
    assert "in parse" in done.stderr and "parser.parse_known_args(words" in done.stderr


def test_the_same_python_makes_the_same_bytecode_every_time(tmp_path: Any) -> None:
    sources = written(tmp_path, bundle.build(), "sources")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from stillpoint import bundle; bundle.compile_file(*sys.argv[1:])"
    made = []
    for name in ("one", "other"):
        subprocess.run([sys.executable, "-I", "-c", code, sources, str(tmp_path / name), "/usr/local/sbin/stillpoint"], check=True)
        made.append((tmp_path / name).read_bytes())
    assert made[0] == made[1]


def test_a_file_says_what_it_was_made_of_and_one_that_was_changed_says_nothing() -> None:
    sources = bundle.build("/usr/bin/python3.11")
    compiled = bundle.compiled(sources, "/usr/local/sbin/stillpoint")
    origin = bundle.Origin(VERSION, bundle.checksum(sources), bundle.bytecode_version())
    assert bundle.origin(compiled) == origin
    assert bundle.origin(sources) is None
    assert bundle.origin(compiled[:-1]) is None
    assert bundle.origin(compiled.replace(b"python3.11", b"python3.12", 1)) is None
    for place in (400, len(sources), len(compiled) - 30):
        assert bundle.origin(compiled[:place] + bytes([compiled[place] ^ 1]) + compiled[place + 1 :]) is None
