# SPDX-License-Identifier: GPL-3.0-or-later
"""What a server encrypts, and where the keys to it lie."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Iterator, List

import pytest
from _core.host import run_directory
from _core.lvm import ownership
from _core.mysql import keys, server, settings
from _core.mysql.account import Account, ensure
from _core.mysql.connection import Login, Session
from _core.mysql.scratch import scratch_server
from _core.repository.left_out import held
from _core.trees import Tree
from real_server import PLUGINS, RealServer, needed, real_server


def marked(test: Any) -> Any:
    ready = PLUGINS and shutil.which("openssl")
    for mark in [*needed, pytest.mark.skipif(not ready, reason="needs openssl, and the server's plugins: tests/lab/setup brings them")]:
        test = mark(test)
    return test


@pytest.fixture(scope="module")
def encrypting() -> Iterator[RealServer]:
    with real_server() as it:
        Path(it.top, "pass").write_text("topsecret")
        encrypt = ["openssl", "enc", "-aes-256-cbc", "-md", "sha1", "-pass", "file:%s/pass" % it.top, "-out", it.top + "/keys"]
        subprocess.run(encrypt, input=b"1;%s\n" % (b"a1" * 32), check=True, stderr=subprocess.DEVNULL)
        os.chmod(it.top + "/keys", 0o644)
        it.stop()
        options = {"plugin-load-add": "file_key_management", "file-key-management-filename": it.top + "/keys"}
        it.start(*("--%s=%s" % item for item in options.items()), "--file-key-management-filekey=FILE:%s/pass" % it.top)
        yield it


@marked
def test_the_role_s_account_sees_what_is_encrypted_and_which_file_has_the_key(encrypting: RealServer, tmp_path: Path) -> None:
    wanted = Account(option_file=str(tmp_path / "my.cnf"))
    with Session(encrypting.login) as session:
        ensure(session, wanted)

    def found() -> server.Server:
        with Session(Login(config_file=wanted.option_file)) as session:
            return server.read(session)

    assert found().keys is None  # nothing is encrypted: no reason to speak of it
    assert "keys" not in found().summary()
    encrypting.do("CREATE DATABASE `my-shop`", *("CREATE TABLE `my-shop`.%s (i INT) ENGINE=InnoDB ENCRYPTED=YES" % name for name in "ba"))
    known = found().keys
    assert known == keys.Keys("file_key_management", (encrypting.top + "/keys", encrypting.top + "/pass"), "", ("my-shop.a and 1 more",))
    assert found().summary()["keys"] == json.loads(json.dumps(known.as_dict()))


@marked
def test_a_scratch_server_has_the_keys_that_lie_in_files_and_no_secret_goes_with_the_settings(
    encrypting: RealServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (run_directory, ownership):
        monkeypatch.setattr(module, "RUN_DIRECTORY", encrypting.top + "/run")
    encrypting.do("CREATE DATABASE d", "CREATE TABLE d.t (i INT) ENGINE=InnoDB ENCRYPTED=YES", "INSERT INTO d.t VALUES (7)")
    copy = encrypting.copy("copy", "FLUSH NO_WRITE_TO_BINLOG ENGINE LOGS")
    with Session(encrypting.login) as session:
        known = settings.read(session, server.read(session))
    with scratch_server(known, {encrypting.datadir: copy}, discard=True) as it, Session(it.login) as session:
        assert session.value("SELECT i FROM d.t") == 7
    assert not settings._is_secret("file_key_management_filekey", "FILE:/etc/pass")
    assert settings._is_secret("file_key_management_filekey", "topsecret")


KEYS = keys.Keys("file_key_management", ("/etc/mysql/keys", "/etc/mysql/pass"), "", ("shop.t", "the redo log"))


def test_each_key_file_that_no_tree_holds_is_warned_of() -> None:
    assert KEYS.warnings({"/etc/mysql/pass"}) == [
        "shop.t and the redo log can't be read without the key file /etc/mysql/keys, which the backup does not hold: keep a copy of it elsewhere"
    ]
    assert KEYS.warnings(KEYS.files) == []


def test_a_key_file_that_a_pattern_leaves_out_of_its_tree_is_not_held(tmp_path: Path) -> None:
    top = tmp_path / "etc"
    (top / "keys").mkdir(parents=True)
    paths = [str(top / name) for name in ("one.key", "keys/two", "pass")]
    for path in paths:
        Path(path).touch()
    away = str(tmp_path / "elsewhere")
    assert held([*paths, away], [Tree("files/etc", str(top), str(top))]) == set(paths)
    assert held([*paths, away], [Tree("files/etc", str(top), str(top), ("*.key", "keys/"))]) == {paths[2]}
    assert held([paths[0]], [Tree("files/etc/one.key", paths[0], paths[0], ("*.other",))]) == {paths[0]}


def test_keys_that_another_host_holds_are_said_to_be_its() -> None:
    away = keys.Keys("hashicorp_key_management", (), "HashiCorp Vault (https://vault:8200/v1/x)", ("shop.t",))
    (said,) = away.warnings(set())
    assert "without the keys that HashiCorp Vault (https://vault:8200/v1/x) holds" in said
    assert "the keys of some_plugin" in keys.Keys("some_plugin", (), "", ("shop.t",)).warnings(set())[0]


def test_a_restore_looks_for_the_key_files_that_the_manifest_names(tmp_path: Path) -> None:
    there = tmp_path / "keys"
    there.touch()
    known = keys.Keys("file_key_management", (str(there), "/nowhere/keys"), "", ("shop.t",))
    summary = {"server": {"keys": known.as_dict()}}
    (said,) = keys.missing_here(summary, lambda _path: False)
    assert said.startswith("shop.t can't be read without the key file /nowhere/keys, which this host lacks: put it there first")
    assert list(keys.missing_here(summary, lambda path: path == "/nowhere/keys")) == []
    assert list(keys.missing_here({"server": {}}, bool)) == list(keys.missing_here({}, bool)) == []


class Answers:
    def __init__(self, plugin: str, names: List[str]) -> None:
        self.plugin, self.names = plugin, names

    def rows(self, statement: str) -> List[dict]:
        if statement == "SHOW PLUGINS":
            return [{"Name": self.plugin, "Status": "ACTIVE", "Type": "KEYRING" if "keyring" in self.plugin else "ENCRYPTION"}] if self.plugin else []
        return [{"NAME": name} for name in self.names]


@pytest.mark.parametrize(
    ("flavour", "plugin", "variables", "files", "service"),
    [
        ("mariadb", "file_key_management", {"file_key_management_filename": "/k", "file_key_management_filekey": "FILE:/p"}, ("/k", "/p"), ""),
        ("mariadb", "file_key_management", {"file_key_management_filename": "/k", "file_key_management_filekey": "topsecret"}, ("/k",), ""),
        ("mariadb", "hashicorp_key_management", {"hashicorp_key_management_vault_url": "https://v/x"}, (), "HashiCorp Vault (https://v/x)"),
        ("mariadb", "aws_key_management", {"aws_key_management_master_key_id": "alias/a"}, (), "the key service of AWS (alias/a)"),
        ("mysql", "keyring_file", {"keyring_file_data": "/var/lib/mysql-keyring/keyring"}, ("/var/lib/mysql-keyring/keyring",), ""),
    ],
)
def test_each_plugin_says_where_its_keys_are(flavour: str, plugin: str, variables: dict, files: tuple, service: str) -> None:
    found = keys.read(Answers(plugin, ["d/t"]), variables, flavour, "/var/lib/mysql", "/usr/sbin/mysqld")
    assert found is not None
    assert (found.files, found.service, found.needed_by) == (files, service, ("d.t",))
    assert "topsecret" not in repr(found)


@pytest.mark.parametrize("local", [True, False])
def test_mysqls_component_says_where_its_keys_are(tmp_path: Path, local: bool) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "plugins").mkdir()
    own = {"path": str(tmp_path / "keyring")}
    (tmp_path / "bin" / "mysqld.my").write_text(json.dumps({"components": "file://component_keyring_file"}))
    (tmp_path / "plugins" / "component_keyring_file.cnf").write_text(json.dumps({"read_local_config": True} if local else own))
    (tmp_path / "component_keyring_file.cnf").write_text(json.dumps(own))
    variables = {"plugin_dir": str(tmp_path / "plugins"), "innodb_redo_log_encrypt": "ON"}
    found = keys.read(Answers("", ["d/t"]), variables, "mysql", str(tmp_path), str(tmp_path / "bin" / "mysqld"))
    assert found == keys.Keys("component_keyring_file", (os.path.realpath(tmp_path / "keyring"),), "", ("d.t", "the redo log"))
