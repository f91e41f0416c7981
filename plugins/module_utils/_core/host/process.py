# SPDX-License-Identifier: GPL-3.0-or-later
"""Other programs: run as argument lists, in the C locale, with a time limit and no inherited descriptors."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence

from .errors import CommandError

# Where system programs live; a timer's or a module's PATH may lack the sbin directories.
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_PR_SET_PDEATHSIG = 1  # prctl(2)
_MCL_CURRENT = 1  # mlockall(2)
_ENDINGS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
LOW_PRIORITY = 10  # nice(2): leaves a busy server the most of its processors, and an idle one's to the copy
_HIGHEST_PRIORITY = -20

# Debian package of each program that a run needs, for the sentence that says it is missing.
PACKAGES = {
    "lvs": "lvm2",
    "lvcreate": "lvm2",
    "rsync": "rsync",
    "mount": "mount",
    "umount": "mount",
    "sync": "coreutils",
    "sort": "coreutils",
    "comm": "coreutils",
    "find": "findutils",
    "zstd": "zstd",
    "restic": "restic",
}


@dataclass(frozen=True)
class Result:
    """What a program that ended left: exit status and text output."""

    argv: List[str]
    rc: int
    stdout: str
    stderr: str


def environment() -> Dict[str, str]:
    """Return the environment that programs get: C locale, a full PATH, UTC left alone, LVM quiet about descriptors."""
    env = {key: value for key, value in os.environ.items() if not key.startswith(("LC_", "LANG", "RSYNC_", "MYSQL_"))}
    env.update(LC_ALL="C", PATH=PATH, LVM_SUPPRESS_FD_WARNINGS="1")
    return env


def require(*programs: str) -> None:
    """Raise CommandError for the first program that is not installed, naming its Debian package."""
    for program in programs:
        if shutil.which(program, path=PATH) is None:
            package = PACKAGES.get(program, program)
            raise CommandError("the program %s is missing on this host: install the package %s" % (program, package), [program])


def end_with_parent() -> None:
    """Ask the kernel to kill this process when its parent dies. For use between fork and exec, and never for an LVM
    command: one that is killed while an origin is suspended leaves that origin suspended."""
    _signal_when_parent_dies(signal.SIGKILL)


def go_on_without_parent() -> None:
    """Ask the kernel to let this process go on, should it be stopped, when its parent dies. For use between fork and exec."""
    _signal_when_parent_dies(signal.SIGCONT)


def _signal_when_parent_dies(number: signal.Signals) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)


def give_way() -> None:
    """Let everything else on the host go first. For use between fork and exec."""
    os.nice(LOW_PRIORITY)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let signals wait while something is closed, or while a few steps that belong together are done; they come at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def urgent() -> Iterator[None]:
    """Let nothing else on the host go first, in the body and in the programs that are started in it: users are waiting."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    with suppress(PermissionError):  # a container may forbid it; it is a matter of milliseconds, not of right or wrong
        os.setpriority(os.PRIO_PROCESS, 0, _HIGHEST_PRIORITY)
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.setpriority(os.PRIO_PROCESS, 0, before)


@contextmanager
def in_memory() -> Iterator[None]:
    """Keep what this process has in memory there, in the body: it may not wait for a page of a volume that stands still."""
    libc = ctypes.CDLL(None)
    libc.mlockall(_MCL_CURRENT)
    try:
        yield
    finally:
        libc.munlockall()


def start(
    argv: Sequence[str],
    *,
    dies_with_us: bool = False,
    gives_way: bool = False,
    in_child: Optional[Callable[[], None]] = None,
    env: Optional[Mapping[str, str]] = None,
    **popen: Any,
) -> "subprocess.Popen[Any]":
    """Start a program and return it running, in a session of its own: a Ctrl-C at the terminal reaches us alone, and we
    decide what it means for the program.

    :param in_child: called between fork and exec
    :param env: all of its environment; default: `environment`
    :raises CommandError: the program is missing
    """

    undo_block = _ENDINGS & signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def before_exec() -> None:
        if undo_block:  # a program must be able to be told to end, also while we are not to be disturbed
            signal.pthread_sigmask(signal.SIG_UNBLOCK, undo_block)
        if gives_way:
            give_way()
        if in_child:
            in_child()
        if dies_with_us:
            end_with_parent()  # last: the kernel forgets it when a process changes its user

    try:
        return subprocess.Popen(  # pylint: disable=subprocess-popen-preexec-fn,consider-using-with
            list(argv),
            env=environment() if env is None else env,
            close_fds=True,
            start_new_session=True,
            preexec_fn=before_exec if dies_with_us or gives_way or in_child or undo_block else None,
            **{"stdin": subprocess.DEVNULL, **popen},
        )
    except OSError as error:
        require(argv[0])
        raise CommandError("%s can't be started: %s" % (argv[0], error.strerror), argv) from error


def run(argv: Sequence[str], *, timeout: float = 60, check: bool = True, stdin: Optional[str] = None) -> Result:
    """Run a program to its end and return its Result.

    :param timeout: seconds after which it is told to end (SIGTERM) and given up on
    :raises CommandError: it is missing, did not end in time, or (with ``check``) ended with another status than 0
    """
    process = start(
        argv,
        stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        errors="surrogateescape",
    )
    try:
        out, err = process.communicate(stdin, timeout=timeout)
    except subprocess.TimeoutExpired as expired:
        _end(process)
        raise CommandError("%s did not end within %g s" % (" ".join(argv[:2]), timeout), argv) from expired
    except BaseException:
        _end(process)
        raise
    if check and process.returncode != 0:
        raise CommandError("%s failed: %s" % (argv[0], sentence(err) or "exit status %d" % process.returncode), argv, process.returncode, err)
    return Result(list(argv), process.returncode, out, err)


def _end(process: "subprocess.Popen[Any]", patience: float = 10) -> None:
    """Tell a program to end and wait for it, for a bounded time: LVM puts a signal off until its volumes are consistent."""
    process.terminate()
    try:
        process.communicate(timeout=patience)
    except subprocess.TimeoutExpired:
        pass  # uninterruptible, in the kernel: waiting longer would pass its hang on to us


def kill(process: "subprocess.Popen[Any]", patience: float = 10) -> None:
    """Kill a program that has nothing to clean up, whatever signal this process gets meanwhile; nothing where it has ended."""
    with undisturbed():
        if process.poll() is None:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # in the kernel, and gone as soon as it comes out
                process.wait(patience)


def end(process: "subprocess.Popen[Any]", patience: float = 10) -> bool:
    """Tell a program to end, unless it has ended, and kill it where it does not in so many seconds; tell whether it ended by itself."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            kill(process, patience)
            return False
    return True


def sentence(stderr: str) -> str:
    """Return the last line that says something of what a program wrote to stderr."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else ""
