# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

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
    code = "import sys; sys.path.insert(0, %r); from _core import bundle; sys.stdout.buffer.write(bundle.build())" % os.path.dirname(
        elsewhere
    )
    built = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    assert built == bundle.build()


def test_a_changed_source_changes_the_bytes(tmp_path: Any) -> None:
    elsewhere = str(tmp_path / "_core")
    shutil.copytree(CORE, elsewhere)
    with open(os.path.join(elsewhere, "errors.py"), "a") as file:
        file.write("# changed\n")
    out = str(tmp_path / "agent")
    subprocess.run([sys.executable, os.path.join(elsewhere, "bundle.py"), out], check=True)
    with open(out, "rb") as agent:
        assert agent.read() != bundle.build()


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
