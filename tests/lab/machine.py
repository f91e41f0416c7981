#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Replicas of ETrial as virtual machines that start from a saved state.

    with Machine.start("ready") as machine:
        machine.run(["lvs", "vg00"])
        machine.load("binlog")

A state is a whole machine, memory included: `ready` (MariaDB runs, nothing else happens) and `binlog` (the same with binary
logging on). They are made once for each image and cached. A machine works on its own copy and never writes to the cache.
It ends with the process that started it, also when that one is killed, unless it was asked to stay (`detach`).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

LAB = Path(__file__).resolve().parent
CACHE = Path(
    os.environ.get("STILLPOINT_CACHE")
    or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "stillpoint"
)
#: Where running machines have their disks and sockets: one folder each, whose lock file its QEMU holds.
RUN = Path("/var/tmp") / f"stillpoint-lab-{os.getuid()}"
MEMORY_MIB = 1536
CPUS = 2
SPARE_GIB = 8
#: What is emulated is no faster for what it can do: a later one has libraries copy memory by AVX or `rep movsb`, which take emulation
#: up to five times as long (rsync a fifth longer, SHA-256 twice as long). The Vagrantfile has the same.
EMULATED_CPU = "Nehalem"
#: Seconds until a machine answers: KVM boots in five, or is not worth waiting for; emulation on a busy machine is slow.
PATIENCE = {"kvm": 30, "tcg": 240}
#: What apt says when a mirror lacks a suite or a package, not when the network is down
MISSING_PACKAGES = re.compile(
    r"^(E|Err).*(Unable to locate package|has no installation candidate|does not have a Release file|unmet dependencies|404 +Not Found).*$", re.MULTILINE
)
BINLOG_CNF = """[mysqld]
server_id = 1
log_bin = /var/log/mysql/mysql-bin
"""


class LabError(Exception):
    """The lab itself failed, not what is tested in it."""


class NotAvailable(LabError):
    """The mirrors do not have what a replica is made of."""


class CommandError(Exception):
    """A command in a machine failed."""

    def __init__(self, command: str, result: Result) -> None:
        super().__init__(f"exit code {result.rc} from: {command}\n{result.stdout[-4000:]}{result.stderr[-4000:]}")
        self.result = result


@dataclass(frozen=True)
class Result:
    """What a command in a machine answered."""

    stdout: str
    stderr: str
    rc: int


# --- images and accelerators -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """The files of one replica, as `tests/lab/image` makes them."""

    folder: Path

    @classmethod
    def get(cls, suite: str | None = None) -> Image:
        """Return the replica of a Debian suite, building it when the cache has none.

        Raises NotAvailable when apt finds the suite or one of its packages on no mirror. That is remembered for a sealed lab,
        in which nothing can be fetched.
        """
        lacking = CACHE / f"lacking-{suite}"
        if "STILLPOINT_IMAGE" in os.environ and lacking.exists():
            raise NotAvailable(lacking.read_text())
        done = subprocess.run([LAB / "image", *([suite] if suite else [])], capture_output=True, text=True, check=False)
        sys.stderr.write(done.stderr)
        if done.returncode:
            found = MISSING_PACKAGES.search(done.stderr)
            if not found:
                raise LabError("the replica could not be built; see above")
            lacking.write_text(f"Debian {suite} can't be had: {found.group()}")
            raise NotAvailable(lacking.read_text())
        lacking.unlink(missing_ok=True)
        return cls(Path(done.stdout.strip()))

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"


def accelerators() -> list[str]:
    """Return what to try, best first. That /dev/kvm can be opened does not say that a guest runs on it."""
    wanted = os.environ.get("STILLPOINT_ACCEL")
    if wanted:
        return [wanted]
    with contextlib.suppress(OSError):
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
        return ["kvm", "tcg"]
    return ["tcg"]


def fingerprint(*parts: object) -> str:
    """Given anything, return a short hash of it."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:12]


def qemu_version() -> str:
    return subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout


def host_cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return "".join(line for line in lines[: lines.index("")] if line.startswith(("model name", "flags")))


# --- QEMU --------------------------------------------------------------------------------------------------------------


class Monitor:
    """QEMU's control socket."""

    def __init__(self, path: Path, timeout: float = 120) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its answer."""
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while line := self._file.readline():
            message = json.loads(line)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise LabError(f"QEMU refused {command}: {message['error']['desc']}")
        raise LabError(f"QEMU ended during {command}")

    def human(self, line: str) -> str:
        """Run a line of the human monitor; these say nothing when all went well."""
        answer: str = self.execute("human-monitor-command", **{"command-line": line})
        if "rror" in answer or "not " in answer:
            raise LabError(f"QEMU: {line}: {answer.strip()}")
        return answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def qemu_command(image: Image, folder: Path, accel: str, port: int, state: str | None) -> list[str]:
    """Given a machine's parts, return the command that runs it; the devices must be the same for every state."""
    append = (image.folder / "cmdline").read_text().strip()
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"]
    command += ["-machine", "pc", "-m", str(MEMORY_MIB), "-smp", str(CPUS), "-rtc", "base=utc"]
    command += ["-accel", "kvm", "-cpu", "host"] if accel == "kvm" else ["-accel", "tcg,thread=multi", "-cpu", EMULATED_CPU]
    command += ["-kernel", str(image.folder / "vmlinuz"), "-initrd", str(image.folder / "initrd.img"), "-append", append]
    for name in ("disk", "spare"):
        command += ["-drive", f"if=none,id={name},file={folder / name}.qcow2,format=qcow2,cache=unsafe,discard=unmap"]
        command += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    command += ["-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{port}-:22"]
    command += ["-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]
    command += ["-serial", f"file:{folder / 'console.log'}", "-qmp", f"unix:{folder / 'qmp'},server=on,wait=off"]
    command += ["-loadvm", state] if state else []
    return command


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def take_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock file, or nothing when another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def claim_folder(name: str | None) -> tuple[Path, int]:
    """Return a new machine's folder and the descriptor of its lock; remove those of machines that no longer run."""
    RUN.mkdir(mode=0o700, exist_ok=True)
    with exclusive(RUN / "lock"):
        for stale in RUN.glob("*/lock"):
            descriptor = take_lock(stale)
            if descriptor is not None:
                shutil.rmtree(stale.parent, ignore_errors=True)
                os.close(descriptor)
        if name and (RUN / name).exists():
            raise LabError(f"a machine named {name} is running")
        folder = RUN / name if name else Path(tempfile.mkdtemp(prefix="tmp.", dir=RUN))
        folder.mkdir(exist_ok=True)
        lock = take_lock(folder / "lock")
        assert lock is not None, "the folder is new"
        return folder, lock


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Wait until no other process is in the same section."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- machines ----------------------------------------------------------------------------------------------------------


@dataclass
class Machine:
    """One running replica."""

    folder: Path
    image: Image
    accel: str
    port: int
    pid: int
    _monitor: Monitor | None = field(default=None, repr=False)

    @classmethod
    def start(
        cls, state: str = "ready", name: str | None = None, image: Image | None = None, detach: bool = False
    ) -> Machine:
        """Return a machine in a saved state. Start it from a thread that lives as long as the machine shall."""
        image = image or Image.get()
        saved = saved_states(image)
        machine = cls._run(image, saved.accel, saved.folder, state, name, detach)
        machine._arrive()
        return machine

    @classmethod
    def boot(cls, image: Image) -> Machine:
        """Return a machine that was booted anew, with the servers of another suite than the one that states are saved of."""
        machine = cls._run(image, saved_states(Image.get()).accel, None, None, None, detach=False)
        try:
            machine._arrive()
            machine.run(PREPARE, timeout=300)
        except BaseException:
            machine.kill()
            raise
        return machine

    @classmethod
    def _run(
        cls, image: Image, accel: str, disks: Path | None, state: str | None, name: str | None, detach: bool
    ) -> Machine:
        """Start QEMU on a copy of `disks`, or on fresh overlays of the image."""
        folder, lock = claim_folder(name)
        try:
            if disks:
                for disk in disks.glob("*.qcow2"):
                    subprocess.run(["cp", "--reflink=auto", "--sparse=always", disk, folder], check=True)
            else:
                make_overlay(folder / "disk.qcow2", image.folder / "disk.qcow2")
                make_overlay(folder / "spare.qcow2", f"{SPARE_GIB}G")
            for _ in range(5):
                port = free_port()
                with (folder / "qemu.log").open("w") as log:
                    process = subprocess.Popen(
                        [
                            *([] if detach else ["setpriv", "--pdeathsig", "KILL"]),
                            *qemu_command(image, folder, accel, port, state),
                        ],
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                        pass_fds=[lock],
                        start_new_session=True,
                    )
                if wait_for_socket(folder / "qmp", process):
                    break
                if "host forwarding" not in (folder / "qemu.log").read_text():
                    raise LabError(f"QEMU does not start: {(folder / 'qemu.log').read_text()}")
            else:
                raise LabError("no free port for ssh")
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        machine = cls(folder, image, accel, port, process.pid)
        machine._remember()
        return machine

    def _remember(self) -> None:
        facts = {"image": str(self.image.folder), "accel": self.accel, "port": self.port, "pid": self.pid}
        (self.folder / "machine.json").write_text(json.dumps(facts))

    @classmethod
    def attach(cls, name: str) -> Machine:
        """Return the running machine of that name, started by another process."""
        try:
            facts = json.loads((RUN / name / "machine.json").read_text())
        except FileNotFoundError:
            raise LabError(f"no machine named {name} is running") from None
        machine = cls(RUN / name, Image(Path(facts["image"])), facts["accel"], facts["port"], facts["pid"])
        if not machine.alive():
            raise LabError(f"machine {name} has ended")
        return machine

    def alive(self) -> bool:
        """Whether QEMU runs: it holds the lock as long as it does."""
        descriptor = take_lock(self.folder / "lock")
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is None

    # how to reach it

    def ssh_options(self) -> dict[str, str]:
        """Return ssh's options for this machine, also good for an Ansible inventory's ssh arguments."""
        return {
            "Port": str(self.port),
            "IdentityFile": str(self.image.key),
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "no",
            "UserKnownHostsFile": "/dev/null",
            "GlobalKnownHostsFile": "/dev/null",
            "LogLevel": "ERROR",
            "ControlMaster": "auto",
            "ControlPersist": "300",
            "ControlPath": str(self.folder / "ssh"),
            "KexAlgorithms": "curve25519-sha256",
            "ConnectTimeout": "10",
            "ServerAliveInterval": "30",
        }

    def ssh_command(self, *arguments: str) -> list[str]:
        options = [part for key, value in self.ssh_options().items() for part in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", *options, "root@127.0.0.1", *arguments]

    def ansible_variables(self) -> Mapping[str, str | int]:
        """Return the variables of an inventory host that is this machine."""
        options = {k: v for k, v in self.ssh_options().items() if k not in ("Port", "IdentityFile")}
        return {
            "ansible_host": "127.0.0.1",
            "ansible_port": self.port,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": str(self.image.key),
            "ansible_ssh_common_args": "-F none " + " ".join(f"-o {k}={v}" for k, v in options.items()),
            "ansible_python_interpreter": "/usr/bin/python3",
        }

    def run(
        self,
        command: str | Sequence[str],
        input: str | bytes | None = None,
        check: bool = True,
        timeout: float = 120,
    ) -> Result:
        """Run a command as root: a list as it is, a string through the machine's shell."""
        line = command if isinstance(command, str) else shlex.join(command)
        data = input.encode() if isinstance(input, str) else input
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if data is None else {"input": data}
        done = subprocess.run(
            self.ssh_command("--", line),
            capture_output=True,
            timeout=timeout,
            check=False,
            **given,
        )
        result = Result(done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace"), done.returncode)
        if check and result.rc:
            raise CommandError(line, result)
        return result

    def popen(self, command: str | Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Start a command as root and return at once."""
        line = command if isinstance(command, str) else shlex.join(command)
        return subprocess.Popen(self.ssh_command("--", line), **{"stdin": subprocess.DEVNULL, **options})

    def put(self, source: str | Path | bytes, destination: str, mode: str = "0644") -> None:
        """Write a local file, or bytes, to a path in the machine."""
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        path = shlex.quote(destination)
        self.run(f"cat > {path} && chmod {mode} {path}", input=data)

    def get(self, source: str, destination: str | Path | None = None) -> bytes:
        """Return a file of the machine, and write it to a local path if one is given."""
        done = subprocess.run(
            self.ssh_command("--", "cat " + shlex.quote(source)), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        if done.returncode:
            raise CommandError(f"cat {source}", Result("", done.stderr.decode(), done.returncode))
        if destination:
            Path(destination).write_bytes(done.stdout)
        return done.stdout

    # states

    def load(self, state: str) -> None:
        """Go back to a saved state: disks, memory, everything."""
        self._hang_up()
        self.monitor().human(f"loadvm {state}")
        self.monitor().execute("cont")
        self._arrive()

    def save(self, state: str) -> None:
        """Keep the machine as it is now, in its own copy of the disks."""
        self._hang_up()
        self.monitor().human(f"savevm {state}")

    def _hang_up(self) -> None:
        """End the shared ssh connection: the state must not have one half of it, nor outlive the other."""
        subprocess.run(self.ssh_command("-O", "exit"), stdin=subprocess.DEVNULL, capture_output=True, check=False)
        (self.folder / "ssh").unlink(missing_ok=True)

    def _arrive(self) -> None:
        """Wait for ssh and set the clock, which stood still while the state was saved."""
        deadline = time.monotonic() + PATIENCE.get(self.accel, 240)
        while True:
            result = self.run(["date", "-u", "-s", f"@{time.time():.3f}"], check=False, timeout=60)
            if result.rc == 0:
                return
            if not self.alive():
                raise LabError(f"QEMU ended: {(self.folder / 'qemu.log').read_text()}")
            if time.monotonic() > deadline:
                raise LabError(f"no ssh to the machine: {result.stderr}\n{self.console()[-3000:]}")
            time.sleep(0.2)

    def monitor(self) -> Monitor:
        """Return the connection to QEMU's monitor."""
        if self._monitor is None:
            self._monitor = Monitor(self.folder / "qmp")
        return self._monitor

    def console(self) -> str:
        """Return what the machine wrote to its serial console."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "console.log").read_text(errors="replace")
        return ""

    def power_cut(self) -> None:
        """Stop as a power cut does, and boot again from what the disks have."""
        self._hang_up()
        self.monitor().execute("system_reset")
        self._arrive()

    def kill(self) -> None:
        """End it, and remove what it had."""
        self._hang_up()
        if self._monitor:
            self._monitor.close()
            self._monitor = None
        if self.alive():
            os.kill(self.pid, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self.pid, 0)
            for _ in range(100):
                if not self.alive():
                    break
                time.sleep(0.05)
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def make_overlay(path: Path, base: Path | str) -> None:
    """Make an empty qcow2 over an image, or of a size of its own."""
    command = ["qemu-img", "create", "-q", "-f", "qcow2"]
    command += ["-F", "qcow2", "-b", str(base), str(path)] if isinstance(base, Path) else [str(path), base]
    subprocess.run(command, check=True)


def wait_for_socket(path: Path, process: subprocess.Popen[bytes]) -> bool:
    """Return whether QEMU came far enough to be talked to."""
    for _ in range(600):
        if process.poll() is not None:
            return False
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(30)
            probe.connect(str(path))
            if probe.recv(1):
                return True
        time.sleep(0.05)
    return False


# --- saved states ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SavedStates:
    """A folder of the cache with disks that have the saved states in them."""

    folder: Path
    accel: str


def saved_states(image: Image) -> SavedStates:
    """Return the image's saved states, making them when the cache has none: about a minute and a half."""
    template = qemu_command(image, Path("/"), "", 0, None)
    definition = (template, BINLOG_CNF, PREPARE, SPARE_GIB, qemu_version(), host_cpu(), os.uname().release)
    candidates = [SavedStates(CACHE / f"states-{accel}-{fingerprint(definition)}", accel) for accel in accelerators()]
    verdict = CACHE / f"accel-{fingerprint(qemu_version(), host_cpu(), os.uname().release)}"

    def usable() -> list[SavedStates]:
        known = verdict.read_text().split() if verdict.exists() else []
        return [c for c in candidates if f"no-{c.accel}" not in known]

    with contextlib.suppress(IndexError):
        if usable()[0].folder.exists():
            os.utime(usable()[0].folder)  # what is not used gets removed one day
            return usable()[0]
    with exclusive(CACHE / "locks" / "states"):
        for states in usable():
            if states.folder.exists():
                return states
            try:
                make_states(image, states)
            except (LabError, CommandError, subprocess.TimeoutExpired):
                if states is candidates[-1]:
                    raise
                with verdict.open("a") as file:
                    file.write(f"no-{states.accel}\n")
                continue
            return states
    raise LabError("no accelerator works")


#: Run in a freshly booted machine; what follows finds it idle.
PREPARE = """
set -e
systemctl is-system-running --wait || systemctl --failed
[ -b /dev/mapper/vg00-root ] && vgck vg00
systemctl is-active mariadb || systemctl is-active mysql
sync; fstrim / || true; sleep 3
"""


def make_states(image: Image, states: SavedStates) -> None:
    """Boot the image, save its states, and put the disks into the cache."""
    began = time.monotonic()
    print(f"== saved states with {states.accel}", file=sys.stderr, flush=True)
    for stale in CACHE.glob(".states-*"):
        shutil.rmtree(stale, ignore_errors=True)
    machine = Machine._run(image, states.accel, None, None, None, detach=False)
    try:
        machine._arrive()
        machine.run(PREPARE)
        machine.save("ready")
        machine.put(BINLOG_CNF.encode(), "/etc/mysql/conf.d/binlog.cnf")
        machine.run("install -d -o mysql -g adm -m 2750 /var/log/mysql")
        machine.run("systemctl restart mariadb || systemctl restart mysql")
        machine.run(PREPARE)
        machine.save("binlog")
        machine._hang_up()
        machine.monitor().execute("quit")
        for _ in range(200):
            if not machine.alive():
                break
            time.sleep(0.05)
        temporary = Path(tempfile.mkdtemp(prefix=".states-", dir=CACHE))
        for disk in machine.folder.glob("*.qcow2"):
            shutil.move(disk, temporary)
        temporary.rename(states.folder)
    finally:
        machine.kill()
    print(f"== saved states: done after {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
