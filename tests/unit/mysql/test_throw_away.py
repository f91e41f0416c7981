# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server makes anew is not in a backup of it, and what it needs is: a real server says which, and starts on the copy."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any, Dict

import pytest
from _core.backup import sources
from _core.mysql import server as servers
from _core.mysql import settings
from _core.mysql.connection import Session
from _core.mysql.scratch import scratch_server
from _core.mysql.throw_away import ThrowAway, throw_away
from _core.repository import estimate
from real_server import needed, real_server
from trees import back_up, job

CORE_DUMP = b"\x7fELF\x02\x01\x01" + b"\0" * 9 + b"\x04\x00" + b"\0" * 5_000_000


def real(test: Any) -> Any:
    for mark in needed:
        test = mark(test)
    return test


def tables_of_interrupted_alter(datadir: str) -> str:
    path = datadir + "/d/#sql-alter-1f-4.frm"
    with open(path, "wb") as file:
        file.write(b"InnoDB's dictionary may refer to it")
    return path


@real
def test_what_the_server_makes_anew_is_neither_copied_nor_counted_and_it_starts_without(tmp_path: Path, own_run_directory: str) -> None:
    with real_server() as server:
        server.do("CREATE DATABASE d", "CREATE DATABASE core", "CREATE TABLE d.t (i INT)", "INSERT INTO d.t VALUES (7)")
        server.stop()
        os.mkdir(server.datadir + "/tmp")
        os.chown(server.datadir + "/tmp", os.stat(server.datadir).st_uid, -1)
        server.start("--innodb-temp-data-file-path=temp [1]:12M;temp2:12M:autoextend", "--tmpdir=%s/tmp" % server.datadir)
        for name, contents in (("core.4711", CORE_DUMP), ("core.txt", b"notes"), ("ibtmp1", b"named like the default, and somebody's own")):
            with open(os.path.join(server.datadir, name), "wb") as file:
                file.write(contents)
        kept = tables_of_interrupted_alter(server.datadir)
        with Session(server.login) as session:
            session.do("CREATE TEMPORARY TABLE d.mine (s TEXT) ENGINE=MyISAM", "INSERT INTO d.mine VALUES (REPEAT('x', 60000))")
            assert any(name.startswith("#sql") for name in os.listdir(server.datadir + "/tmp"))
            found = servers.read(session)
            known = settings.read(session, found)
            roles = sources.server_paths(found)
            (tree,) = sources.trees_for(roles, sources.left_out_of(roles, [], found))
            total, _new = estimate.estimate([tree], {})
            session.do("FLUSH TABLES WITH READ LOCK")
            generation = back_up(job(tmp_path / "repository"), tree)
            session.do("UNLOCK TABLES")
        made = generation.path + "/mysql"
        size = sum(os.path.getsize(os.path.join(above, name)) for above, _directories, names in os.walk(server.datadir) for name in names)
        assert size - total > 29_000_000
        assert {"core", "core.txt", "ibtmp1", "tmp", "ibdata1", "aria_log_control"} <= set(os.listdir(made))
        assert not {"temp [1]", "temp2", "core.4711"} & set(os.listdir(made)) and os.listdir(made + "/tmp") == []
        assert os.path.exists(made + kept[len(server.datadir) :])
        (facts,) = generation.summary["trees"]
        assert facts["left_out"] == [r"/temp \[1]", "/temp2", "/tmp/#sql*", "/core.4711", "#sql-temptable-*"]
        copy = server.top + "/copy"
        shutil.copytree(made, copy)
        for above, directories, names in os.walk(copy):
            for name in [".", *directories, *names]:
                os.chown(os.path.join(above, name), os.stat(server.datadir).st_uid, -1)
        with scratch_server(known, {server.datadir: copy}, discard=True) as it, Session(it.login) as session:
            assert session.rows("SELECT i FROM d.t") == [{"i": 7}]


CASES: Dict[str, Any] = {
    "default": ({"innodb_temp_data_file_path": "ibtmp1:12M:autoextend", "tmpdir": "/tmp"}, ["/ibtmp1"], ()),
    "elsewhere": ({"innodb_temp_data_file_path": "/srv/temp/ibtmp1:12M", "tmpdir": "/tmp:/srv/more"}, [], ()),
    "home": ({"innodb_data_home_dir": "innodb", "innodb_temp_data_file_path": "../t/ibtmp1:12M"}, ["/t/ibtmp1"], ()),
    "mysql 8": (
        {"innodb_temp_data_file_path": "ibtmp1:12M:autoextend", "innodb_temp_tablespaces_dir": "./#innodb_temp/"},
        ["/ibtmp1", "/#innodb_temp/temp_*.ibt"],
        (),
    ),
    "tmpdir is the data directory": ({"tmpdir": "DATADIR"}, ["/#sql*"], ()),
    "tmpdirs in the data directory": ({"tmpdir": "DATADIR/tmp:/tmp", "slave_load_tmpdir": "load"}, ["/tmp/#sql*"], ("DATADIR/load", "DATADIR/tmp")),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_thrown_away_is_known_by_the_servers_variables(tmp_path: Path, case: str) -> None:
    datadir = str(tmp_path)
    variables, patterns, directories = CASES[case]
    found = throw_away({name: value.replace("DATADIR", datadir) for name, value in variables.items()}, datadir)
    assert found.below(datadir) == [*patterns, "#sql-temptable-*"]
    assert found.directories == tuple(each.replace("DATADIR", datadir) for each in directories)


def test_nothing_of_another_directory_is_left_out_of_one() -> None:
    assert ThrowAway(("/var/lib/mysql-temp/ibtmp1",)).below("/var/lib/mysql") == ["#sql-temptable-*"]
