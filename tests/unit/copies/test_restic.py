# SPDX-License-Identifier: GPL-3.0-or-later
"""What restic says of a repository, by each version: one error of ours for each."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Iterator

import pytest
from _core.copies import restic, secrets
from _core.host.errors import UsageError
from rest_server import RESTICS, RestServer, needs_restic, rest_server

pytestmark = [*needs_restic, pytest.mark.usefixtures("own_run_directory")]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RestServer]:
    with rest_server(tmp_path_factory.mktemp("rest")) as running:
        running.initialize("db1")
        yield running


each_version = pytest.mark.parametrize("program", RESTICS)


@each_version
def test_a_repository_is_known_by_its_id(server: RestServer, program: str) -> None:
    assert len(server.restic(program).repository_id()) == 64
    assert server.restic(program).version() >= (0, 14)


@each_version
@pytest.mark.parametrize(
    "changed, error, words",
    [
        ({"RESTIC_PASSWORD": "no-such-key"}, restic.WrongPassword, "does not open"),
        ({"RESTIC_REST_PASSWORD": "no-such-account"}, restic.Refused, "refuses the account"),
        ({"RESTIC_CACERT": "/etc/ssl/certs/ca-certificates.crt"}, restic.Refused, "certificate"),
    ],
)
def test_what_does_not_fit_is_said_at_once_and_without_a_secret(
    server: RestServer, program: str, changed: "dict[str, str]", error: "type[Exception]", words: str
) -> None:
    if not os.path.exists(changed.get("RESTIC_CACERT", "/")):
        pytest.skip("needs ca-certificates")
    began = time.monotonic()
    with pytest.raises(error) as caught:
        server.restic(program, **changed).repository_id()
    assert words in str(caught.value) and server.url() in str(caught.value)
    assert not [value for value in (*changed.values(), "repository-secret", "p@ss") if value in str(caught.value) and not value.startswith("/")]
    assert time.monotonic() - began < 60


@each_version
def test_an_address_without_a_repository_is_told_from_one_that_does_not_answer(server: RestServer, program: str, tmp_path: Path) -> None:
    held = server.restic(program)
    with pytest.raises(restic.NoRepository):
        replace(held, url=str(tmp_path / "none")).repository_id()
    (server.path / "db1").rename(server.path / "away")
    try:
        with pytest.raises(restic.NoRepository, match="has no repository"):
            held.repository_id()
    finally:
        (server.path / "away").rename(server.path / "db1")
    server.stop()
    try:
        with pytest.raises(restic.Offline, match="can't be reached: .*refused") as caught:
            held.repository_id()
        assert caught.value.exit_code == 75
    finally:
        server.start()


def test_restic_knows_nothing_of_our_environment_and_has_no_secret_among_its_arguments(
    server: RestServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = tmp_path / "restic"
    look = 'tr "\\0" "\\n" </proc/$$/environ; echo "ARGV $*"; cat "$RESTIC_REPOSITORY_FILE"'
    spy.write_text("#!/bin/sh\n{ %s; } >%s/seen\necho '{\"id\": \"x\"}'\n" % (look, tmp_path))
    spy.chmod(0o755)
    monkeypatch.setenv("RESTIC_REPOSITORY", "/another")
    assert replace(server.restic(), program=str(spy)).repository_id() == "x"
    seen = (tmp_path / "seen").read_text().splitlines()
    assert {line.split("=")[0] for line in seen if "=" in line} == {
        "RESTIC_PASSWORD", "RESTIC_REPOSITORY_FILE", "PATH", "LC_ALL", "TZ", "RESTIC_PROGRESS_FPS",
    }  # fmt: skip
    assert seen[-1] == server.url().replace("https://", "https://db1:p%40ss%3A%2Fword@")
    arguments = next(line for line in seen if line.startswith("ARGV"))
    assert "secret" not in arguments and "word" not in arguments and "--cacert" in arguments


def test_a_version_that_loses_what_it_copies_is_refused(server: RestServer, tmp_path: Path) -> None:
    old = tmp_path / "restic"
    old.write_text("#!/bin/sh\necho restic 0.11.0 compiled with go1.15.9 on linux/amd64\n")
    old.chmod(0o755)
    with pytest.raises(UsageError, match=r"restic 0\.11\.0 is too old"):
        replace(server.restic(), program=str(old)).version()


@pytest.mark.parametrize(
    "content, mode, words",
    [
        ("RESTIC_PASSWORD=x\n", 0o640, "open to others than its owner .mode 0640."),
        ("RESTIC_REPOSITORY=x\n", 0o600, "line 1 has the key RESTIC_REPOSITORY"),
        ("RESTIC_PASSWORD=x\nsecret words\n", 0o600, "line 2 is not KEY=VALUE$"),
        ("RESTIC_PASSWORD=x\nRESTIC_PASSWORD=y\n", 0o600, "a second time"),
        ("# none\nAWS_ACCESS_KEY_ID=x\n", 0o600, "lacks RESTIC_PASSWORD"),
    ],
)
def test_a_secrets_file_that_others_read_or_that_says_more_is_refused(tmp_path: Path, content: str, mode: int, words: str) -> None:
    path = tmp_path / "vault"
    path.write_text(content)
    path.chmod(mode)
    with pytest.raises(UsageError, match=words):
        secrets.read(str(path))
    assert "secret words" not in str(pytest.raises(UsageError, secrets.read, str(path)).value)
