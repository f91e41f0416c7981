# SPDX-License-Identifier: GPL-3.0-or-later
"""A vault on this host, with a real REST server over TLS, and clients with a real restic."""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import forge
import pytest
import yaml
from _core.repository import manifest
from _core.vault import accounts, hosts, ledger, state
from _core.vault.layout import HostDirectory, make_top
from _core.vault.settings import Settings, parse
from _core.vault.trusted import Trusted

PROGRAMS = Path(os.environ.get("STILLPOINT_CACHE") or Path.home() / ".cache/stillpoint") / "restic-trixie"  # as tests/lab/setup puts it
RESTIC, SERVER = PROGRAMS / "restic", PROGRAMS / "restic-rest-server"
USER = "nobody"
DAY = 86400.0

needs_vault = [
    pytest.mark.server,
    pytest.mark.skipif(os.geteuid() != 0 or not SERVER.exists(), reason="needs root, and restic and its REST server from tests/lab/setup"),
]


@dataclass
class Vault:
    """A vault in a directory.

    :ivar secrets: of each host
    """

    top: Path
    port: int
    template: Path
    server: int = 0  # its process
    secrets: Dict[str, Dict[str, str]] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        return parse(yaml.safe_load(self.file.read_text()), str(self.file))

    @property
    def file(self) -> Path:
        return self.top / "vault.yml"

    @property
    def certificate(self) -> Path:
        return self.top / "cert.pem"

    def configure(self, **values: Any) -> None:
        """Let the vault's file have these values besides."""
        self.file.write_text(yaml.safe_dump({**yaml.safe_load(self.file.read_text()), **values}))

    def directory(self, host: str = "db1") -> HostDirectory:
        return HostDirectory(self.settings, host)

    def ledger(self, host: str = "db1") -> ledger.Ledger:
        return ledger.read(self.directory(host).ledger)

    def add(self, host: str) -> "Client":
        """Make a repository for a host, with keys that cost little to open. Only the first one is made, others are copies of it."""
        settings, directory = self.settings, self.directory(host)
        if not (self.template / "secrets.json").exists():
            self._make_template()
        if not os.path.exists(settings.password):
            shutil.copy(self.template / "password", settings.password)
            make_top(settings)
        self.secrets[host] = {**json.loads((self.template / "secrets.json").read_text()), "RESTIC_REST_USERNAME": host}
        subprocess.run(["cp", "-a", str(self.template / "repository"), directory.served], check=True)
        state.write(directory, state.State(created=time.time()))
        accounts.set_password(settings, host, self.secrets[host]["RESTIC_REST_PASSWORD"])
        if self.server:
            self.read_accounts(self.client(host))
        return self.client(host)

    def _make_template(self) -> None:
        host = "template"
        secrets = hosts.init(self.settings, host).as_dict()
        repository = Path(self.directory(host).path)
        password = Path(self.settings.password).read_text().strip()
        key = forge.master_key(repository, password)
        for old in (repository / "keys").iterdir():
            old.unlink()
        for each, user in ((password, "root"), (secrets["RESTIC_PASSWORD"], hosts.CLIENT)):
            content = key.file(each, user)
            path = repository / "keys" / forge.name(content)
            path.write_bytes(content)
            shutil.chown(path, "root", "nogroup")
            path.chmod(0o640)
        shutil.copy(self.settings.password, self.template / "password")
        subprocess.run(["mv", str(repository), str(self.template / "repository")], check=True)
        os.unlink(self.directory(host).state)
        (self.template / "secrets.json").write_text(json.dumps(secrets))

    def read_accounts(self, client: "Client") -> None:
        """Have the server read its accounts now, as systemd would tell it to, until it knows this host."""
        os.kill(self.server, signal.SIGHUP)
        until = time.monotonic() + 60
        while client.request("GET", "snapshots/")[0] == 401 and time.monotonic() < until:
            time.sleep(0.01)

    def client(self, host: str = "db1") -> "Client":
        return Client(self, host, self.secrets[host])

    def agent(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run the agent."""
        core = Path(forge.__file__).resolve().parents[2] / "plugins/module_utils"
        code = "import sys; sys.path.insert(0, %r); from _core.agent.main import main; sys.exit(main())" % str(core)
        environment = {**os.environ, "STILLPOINT_VAULT": str(self.file)}
        return subprocess.run([sys.executable, "-c", code, "vault", *words], env=environment, capture_output=True, text=True)

    def age(self, days: float, host: str = "db1") -> None:
        """Let all that has happened until now be some days older, the ledger included."""
        directory = self.directory(host)
        for stored in directory.files()[0]:
            os.utime(stored.path, (stored.arrived - days * DAY,) * 2)
        for path, keys in ((directory.ledger, ("arrived", "claimed")), (directory.state, ("created", "checked", "pruned", "read"))):
            if os.path.exists(path):
                lines = [json.loads(line) for line in Path(path).read_text().splitlines()] if path == directory.ledger else [json.loads(Path(path).read_text())]
                aged = [{key: each - days * DAY if key in keys and each else each for key, each in line.items()} for line in lines]
                Path(path).write_text("".join(json.dumps(each) + "\n" for each in aged))


@dataclass
class Client:
    """A host that sends copies, with all that it has."""

    vault: Vault
    host: str
    secrets: Dict[str, str]

    @property
    def url(self) -> str:
        return "https://localhost:%d/%s/" % (self.vault.port, self.host)

    @property
    def key(self) -> forge.Key:
        return forge.master_key(Path(self.vault.directory(self.host).path), self.secrets["RESTIC_PASSWORD"])

    @property
    def authorization(self) -> str:
        """Return what HTTP's basic authentication has of this host."""
        return base64.b64encode(("%s:%s" % (self.secrets["RESTIC_REST_USERNAME"], self.secrets["RESTIC_REST_PASSWORD"])).encode()).decode()

    def restic(self, *arguments: str, check: bool = True, **options: Any) -> "subprocess.CompletedProcess[str]":
        environment = {**os.environ, **self.secrets, "RESTIC_REPOSITORY": "rest:" + self.url, "RESTIC_CACERT": str(self.vault.certificate)}
        argv = [str(RESTIC), "--no-cache", "-q", *arguments]
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, **options)
        assert done.returncode == 0 or not check, done.stderr
        return done

    def send(self, generation: str, files: Dict[str, bytes], **more: Any) -> str:
        """Send a generation of these files and return the id of the snapshot."""
        tree = self.generation(generation, files)
        return self.send_tree(tree, generation, **more)

    def generation(self, generation: str, files: Dict[str, bytes]) -> Path:
        """Make a generation of these files with its manifest."""
        tree = self.vault.top / "generations" / self.host / generation
        shutil.rmtree(tree, ignore_errors=True)
        for path, data in files.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(data)
        write_manifest(tree)
        return tree

    def send_tree(self, tree: Path, generation: str, *, job: str = "web", state: str = "good", bytes: Optional[int] = None, **options: str) -> str:
        content = (tree / manifest.NAME).read_bytes()
        sizes = [each.stat().st_size for each in tree.rglob("*") if each.is_file()]
        when = options.pop("time", generation[:10] + " " + generation[11:19].replace("-", ":"))
        tags = {"job": job, "generation": generation, "state": state, "bytes": sum(sizes) if bytes is None else bytes, "files": len(sizes)}
        tags["manifest"] = options.pop("manifest", hashlib.sha256(content).hexdigest())
        words = [word for key, value in tags.items() for word in ("--tag", "%s=%s" % (key, value))]
        told = ["--host", options.pop("host", self.host), "--time", when, "--tag", "stillpoint", *words]
        done = self.restic("backup", ".", *told, "--json", cwd=str(tree))
        return str(json.loads(done.stdout.splitlines()[-1])["snapshot_id"])

    def request(self, method: str, path: str, body: Any = None, **headers: str) -> Tuple[int, bytes]:
        """Do an HTTP request as this host and return status and answer; a path that starts with / is taken as it is."""
        context = ssl.create_default_context(cafile=str(self.vault.certificate))
        connection = http.client.HTTPSConnection("localhost", self.vault.port, context=context, timeout=20)
        full = path if path.startswith("/") else "/%s/%s" % (self.host, path)
        try:
            connection.request(method, full, body, {"Authorization": "Basic " + self.authorization, **headers})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def post(self, kind: str, content: bytes) -> str:
        """Send a file of a kind under its own name, as restic does, and return that."""
        name = forge.name(content)
        status, _text = self.request("POST", "%s/%s" % (kind, name), content)
        assert status == 200, status
        return name

    def restored(self, snapshot: str) -> List[str]:
        """Restore a copy from the vault by the trusted index and return what is not as its manifest says."""
        directory = self.vault.directory(self.host)
        target = self.vault.top / "restored"
        shutil.rmtree(target, ignore_errors=True)
        with Trusted(directory).view(each for each in directory.files()[0] if each.id == snapshot) as engine:
            done = engine.run("restore", snapshot, "--target", str(target), "--no-lock", check=False)
        return ([] if done.rc == 0 else [done.stderr]) + differences(target)


def differences(tree: Path) -> List[str]:
    """Return what a tree has other than its manifest."""
    wrong = []
    for entry in manifest.entries(str(tree)):
        path = tree / os.fsdecode(entry.path)
        there = path.is_file() if entry.type == manifest.FILE else os.path.lexists(path)
        if not there or (entry.type == manifest.FILE and hashlib.sha256(path.read_bytes()).hexdigest() != entry.checksum):
            wrong.append(str(path))
    return wrong


def write_manifest(tree: Path) -> None:
    """Write the manifest of a tree in our format."""
    lines = []
    for entry, _allocated in manifest.walk(os.fsencode(tree), leave_out=(b"manifest.json",)):
        if entry.type == manifest.FILE:
            entry = entry._replace(checksum=hashlib.sha256((tree / os.fsdecode(entry.path)).read_bytes()).hexdigest())
        lines.append(manifest._line(entry))
    head = b'{\n"sequence": 1,\n"files": [\n' + b",\n".join(lines) + b"\n],\n"
    (tree / manifest.NAME).write_bytes(head + b'"sha256": "' + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n')


@contextmanager
def vault(top: Path) -> Iterator[Vault]:
    """Run a vault in a directory."""
    top.chmod(0o755)
    for parent in top.parents:
        if parent.stat().st_uid == 0 and parent != Path("/"):
            parent.chmod(parent.stat().st_mode | 0o011)
    certificate = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    files = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(top / "key.pem"), "-out", str(top / "cert.pem")]
    subprocess.run([*certificate, *files], check=True, capture_output=True)
    shutil.chown(top / "key.pem", USER)
    (top / "cert.pem").chmod(0o644)  # whatever the umask is that an earlier test has left
    settings = {"directory": top / "srv", "state": top / "state", "accounts": top / "htpasswd", "password": top / "password"}
    text = {**{key: str(path) for key, path in settings.items()}, "user": USER, "restic": str(RESTIC)}
    (top / "vault.yml").write_text(yaml.safe_dump(text))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    template = top.parent / "template"
    template.mkdir(exist_ok=True)
    made = Vault(top, port, template)
    (top / "srv").mkdir()
    (top / "srv").chmod(0o755)
    made.add("db1")
    argv = ["setpriv", "--reuid", USER, "--regid", "nogroup", "--clear-groups", "--pdeathsig", "KILL", str(top / "server")]
    shutil.copy(SERVER, top / "server")
    options = ["--path", str(top / "srv/served"), "--listen", "127.0.0.1:%d" % port, "--append-only", "--private-repos"]
    tls = ["--htpasswd-file", str(top / "htpasswd"), "--tls", "--tls-cert", str(top / "cert.pem"), "--tls-key", str(top / "key.pem")]
    with open(top / "server.log", "wb") as log, subprocess.Popen([*argv, *options, *tls], stdout=log, stderr=log) as server:
        try:
            _await(port, server, top / "server.log")
            made.server = server.pid
            yield made
        finally:
            server.kill()


def _await(port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    while server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)
    raise AssertionError(log.read_text())
