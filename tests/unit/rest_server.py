# SPDX-License-Identifier: GPL-3.0-or-later
"""A real REST server over TLS on this host that takes copies, and each real restic that is supported."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Iterator, Optional

import pytest
from _core.copies import secrets
from _core.copies.restic import Restic

CACHE = Path(os.environ.get("STILLPOINT_CACHE") or Path.home() / ".cache/stillpoint")  # where tests/lab/setup puts them
RESTICS = {"oldest": str(CACHE / "restic-bookworm/restic"), "newest": str(CACHE / "restic-trixie/restic")}
SERVER = str(CACHE / "restic-trixie/restic-rest-server")

needs_restic = [
    pytest.mark.server,
    pytest.mark.skipif(
        os.geteuid() != 0 or not all(os.path.exists(path) for path in (*RESTICS.values(), SERVER)),
        reason="needs root, and both restics and the REST server from tests/lab/setup",
    ),
]


@dataclass
class RestServer:
    """A server that lets a host add to its own repository, and do nothing else.

    :ivar path: its data; a repository lies in the directory of its host's name
    """

    path: Path
    files: Path
    port: int
    most_bytes: Optional[int] = None
    process: Optional["subprocess.Popen[bytes]"] = None

    @property
    def certificate(self) -> Path:
        return self.files / "cert.pem"

    def url(self, host: str = "db1") -> str:
        return "rest:https://127.0.0.1:%d/%s" % (self.port, host)

    def start(self) -> None:
        argv = [SERVER, "--path", str(self.path), "--listen", "127.0.0.1:%d" % self.port, "--append-only", "--private-repos"]
        argv += ["--tls", "--tls-cert", str(self.certificate), "--tls-key", str(self.files / "key.pem"), "--htpasswd-file", str(self.files / "accounts")]
        argv += ["--max-size", str(self.most_bytes)] if self.most_bytes else []
        with open(self.files / "log", "ab") as log:
            self.process = subprocess.Popen(argv, stdout=log, stderr=log)
        until = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert time.monotonic() < until and self.process.poll() is None, (self.files / "log").read_text()
                time.sleep(0.02)

    def initialize(self, name: str) -> None:
        """Make a repository that every restic can use."""
        argv = [RESTICS["oldest"], "init", "--repo", str(self.path / name)]
        subprocess.run(argv, env={"RESTIC_PASSWORD": "repository-secret", "HOME": "/nonexistent"}, check=True, capture_output=True)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def secrets(self, name: str = "vault", **values: str) -> str:
        """Write a secrets file and return its path."""
        path = self.files / name
        known = {"RESTIC_PASSWORD": "repository-secret", "RESTIC_REST_USERNAME": "db1", "RESTIC_REST_PASSWORD": "p@ss:/word"}
        known["RESTIC_CACERT"] = str(self.certificate)
        path.write_text("".join("%s=%s\n" % pair for pair in {**known, **values}.items()))
        path.chmod(0o600)
        return str(path)

    def restic(self, program: str = "newest", host: str = "db1", **values: str) -> Restic:
        return Restic(self.url(host), secrets.read(self.secrets("other", **values)), RESTICS[program], None)


@contextmanager
def rest_server(directory: Path) -> Iterator[RestServer]:
    """Give a server that runs."""
    files = directory / "server"
    data = directory / "data"
    for path in (files, data):
        path.mkdir()
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
        + ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(files / "key.pem"), "-out", str(files / "cert.pem")],
        check=True,
        capture_output=True,
    )
    digest = base64.b64encode(hashlib.sha1(b"p@ss:/word").digest()).decode()
    (files / "accounts").write_text("db1:{SHA}%s\n" % digest)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = RestServer(data, files, port)
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(data)
