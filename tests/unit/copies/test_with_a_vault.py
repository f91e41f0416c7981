# SPDX-License-Identifier: GPL-3.0-or-later
"""What is sent from here, at a vault as it is: its keeper finds it sound, and what the keeper does is understood here."""

from __future__ import annotations

import os
import shutil
import socket
from pathlib import Path
from typing import Iterator

import pytest
from _core.copies import known, restic, secrets, send
from _core.copies.destination import Destination
from _core.copies.fetch import fetch
from _core.copies.restic import Restic
from _core.job.options import Copy
from _core.vault import keeper
from rest_server import RESTICS
from trees import Quiet, awkward, back_up, facts, tree
from trees import job as job_directory
from vault_server import Vault, needs_vault, vault

pytestmark = [*needs_vault, pytest.mark.usefixtures("own_run_directory")]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Vault]:
    (tmp_path / "v").mkdir()
    with vault(tmp_path / "v") as found:
        yield found


@pytest.mark.parametrize("program", RESTICS)
def test_an_awkward_backup_is_sound_to_the_keeper_and_comes_back_from_a_vault(
    made: Vault, program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known, "STATE", str(tmp_path / "known"))
    client = made.client()
    path = tmp_path / "secrets"
    path.write_text("".join("%s=%s\n" % pair for pair in {**client.secrets, "RESTIC_CACERT": made.certificate}.items()))
    path.chmod(0o600)
    url = "rest:" + client.url.rstrip("/")
    vault_copy = Destination(Restic(url, secrets.read(str(path)), RESTICS[program]), "db1", "job", "vault")
    copy = Copy("vault", url, str(path), append_only=True)
    source = awkward(str(tmp_path / "source"))
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(source + "/open/sock")
    os.symlink(b"to-\xff", os.path.join(os.fsencode(source), b"open/not-utf8"))
    directory = job_directory(tmp_path / "repository")
    first = back_up(directory, tree(source))
    before = facts(first.path + "/files")
    assert len(send.send_missing(vault_copy, copy, directory.generations(), Quiet())) == 1
    assert keeper.check(made.directory()).alarms == ()

    back_up(directory, tree(source), hours=1)
    assert made.agent("freeze", "db1").returncode == 0
    with pytest.raises(restic.Unavailable) as frozen:
        send.send_missing(vault_copy, copy, directory.generations(), Quiet())
    assert frozen.value.exit_code == 75
    assert made.agent("thaw", "db1").returncode == 0
    assert len(send.send_missing(vault_copy, copy, directory.generations(), Quiet())) == 1

    shutil.rmtree(directory.path)
    oldest = vault_copy.list()[-1]
    assert facts(fetch(vault_copy, oldest, directory, Quiet()).generation.path + "/files") == before
