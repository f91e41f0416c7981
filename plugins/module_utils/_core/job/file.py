# SPDX-License-Identifier: GPL-3.0-or-later
"""A job: what to back up, from where, to where, and what to keep. One schema for the role's variable, the job file and the agent.

Every fault is a UsageError that names file, key and what is expected, so that nothing starts on a job that says something
else than its author meant: an unknown key is refused, and so is one that this version would ignore.
"""

from __future__ import annotations

import os
import re
import stat
import sys
from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..host.errors import StillpointError, UsageError
from ..lvm import sizes
from . import options
from .names import SUFFIX, job_names, jobs_directory

SNAPSHOT, DUMP = "snapshot", "dump"
METHODS = (SNAPSHOT, DUMP)
SOURCES = ("server", "snapshot")
LOCKS = ("auto", "backup_stage", "instance", "ftwrl", "none")
LONG_QUERY_ACTIONS = ("wait", "fail", "kill")
ARCHIVE_METHODS = ("auto", "stream", "copy")

# What only some jobs need is imported for those: `list` reads the jobs of whole fleets.
# pylint: disable=import-outside-toplevel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_RATE = r"[0-9]+(\.[0-9]+)?[KMGkmg]?"
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class MysqlOptions(NamedTuple):
    """How the server is reached, and what may be done to it. There is no password here: it has its place in ``config_file``."""

    method: str = "snapshot"
    lock: str = "auto"
    login_user: Optional[str] = None
    login_host: Optional[str] = None
    login_port: Optional[int] = None
    login_unix_socket: Optional[str] = None
    config_file: Optional[str] = None
    ca_cert: Optional[str] = None
    client_cert: Optional[str] = None
    client_key: Optional[str] = None
    check_hostname: Optional[bool] = None
    connect_timeout: int = 10  # seconds, as are the three below
    lock_wait_timeout: int = 5
    long_query_threshold: int = 5
    long_query_timeout: int = 60
    long_query_action: str = "wait"
    databases: Optional[Tuple[str, ...]] = None  # of a dump, as are the two below; None: all of them
    split: bool = False
    source: str = "server"  # or snapshot: a scratch server on one

    @property
    def is_dump(self) -> bool:
        return self.method == DUMP
    stop_replica: bool = False
    desync: bool = False


class Keep(NamedTuple):
    """How many generations of each kind the retention keeps; each number counts for itself."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class Notify(NamedTuple):
    """Who is told how a run ended: a URL that is requested, a command that is started, a directory whose files Prometheus' node_exporter reads."""

    ping_url: Optional[str] = None
    command: Tuple[str, ...] = ()
    metrics: Optional[str] = None


class BinlogOptions(NamedTuple):
    """How the server's binary logs are archived.

    :ivar method: ``auto`` takes the stream where account and host allow it
    """

    archive: bool = True
    method: str = "auto"


class Verify(NamedTuple):
    """Whether a server is started on each backup before it is published, and which of its tables it checks then.

    :ivar schedule: when the newest backup is read again and compared with its checksums
    :ivar accept: tables whose faults don't make a backup bad, ``schema.table`` or ``schema.*``
    """

    server: bool = False
    tables: str = options.CHANGED
    schedule: Optional[str] = None
    accept: Tuple[str, ...] = ()


class Job(NamedTuple):
    """A job that has been read and found right in itself; whether its paths exist is `paths.check_paths`' to say."""

    name: str
    repository: str
    mysql: Optional[MysqlOptions] = None
    files: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    snapshot_size: sizes.Size = sizes.Size("auto", "auto")
    keep: Optional[Keep] = None
    bwlimit: Optional[str] = None  # as rsync takes it: KiB/s, or with a suffix K, M, G
    checksum: bool = False  # compare files by content, not by size and time
    binlog: Optional[BinlogOptions] = None  # None: binary logs are not archived
    schedule: Optional[str] = None
    notify: Notify = Notify()
    verify: Verify = Verify()
    where: str = "job"  # the file it was read from, for sentences


def load(name_or_path: str) -> Job:
    """Return the Job of this name (``/etc/stillpoint/jobs/NAME.yml``) or in this file.

    :raises UsageError: there is no such job, the file is not safe to trust, or something in it is wrong
    """
    path = name_or_path if "/" in name_or_path else os.path.join(jobs_directory(), name_or_path + SUFFIX)
    job = parse(_read_yaml(path, name_or_path), path)
    stem = os.path.splitext(os.path.basename(path))[0]
    if stem != job.name:
        raise UsageError("%s: name is %r, but the file is called %s: make them the same" % (path, job.name, os.path.basename(path)))
    return job


def parse(mapping: Any, where: str = "job") -> Job:
    """Return the Job that a mapping describes.

    :param where: the file or variable it comes from, for the sentence
    :raises UsageError: a key is unknown, missing, of the wrong type or not supported yet; or the parts contradict each other
    """
    values = _read(_At(where), mapping, _JOB, required=("name", "repository"))
    job = Job(where=where, **values)
    if job.mysql is None and not job.files:
        raise UsageError("%s: there is nothing to back up: give mysql, files, or both" % where)
    if job.binlog is not None and job.mysql is None:
        raise UsageError("%s: binlog archives the binary logs of a server, and the job has none: give mysql too" % where)
    if job.verify.server and job.mysql is None:
        raise UsageError("%s: verify.server is true, and the job has no mysql whose server could be started: leave verify out" % where)
    if job.verify.server and job.mysql is not None and job.mysql.method != "snapshot":
        raise UsageError("%s: verify.server is true, and no server can be started on a dump: leave verify out" % where)
    if job.binlog is not None and job.mysql is not None and job.mysql.is_dump:
        raise UsageError(
            "%s: binlog has archive, and binary logs can only be replayed onto a copy of the server's files: give mysql the method snapshot, or a job "
            "of its own to each" % where
        )
    for path in job.files:
        if _inside(job.repository, path):
            raise UsageError("%s: repository %s lies in %s, which the job backs up: move one of them" % (where, job.repository, path))
        if _inside(path, job.repository):
            raise UsageError("%s: files has %s, which lies in the repository %s: move one of them" % (where, path, job.repository))
    return job


# --- reading: each reader takes where a value stands and the value, and returns what the Job gets


class _At(NamedTuple):
    """Where a value stands: in which file, under which key."""

    where: str
    key: str = ""

    def below(self, key: str) -> "_At":
        return _At(self.where, "%s.%s" % (self.key, key) if self.key else key)

    def wrong(self, value: Any, expected: str) -> UsageError:
        return self.refuse("is %s, expected %s" % (_shown(value), expected))

    def refuse(self, text: str) -> UsageError:
        return UsageError("%s: %s %s" % (self.where, self.key or "the job", text))


_Reader = Callable[[_At, Any], Any]


def _shown(value: Any) -> str:
    """Return a value as a sentence can hold it."""
    if value is None:
        return "empty"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (dict, list)):
        return "a %s" % ("mapping" if isinstance(value, dict) else "list")
    text = repr(value) if isinstance(value, (str, int, float)) else str(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _read(at: _At, value: Any, readers: Mapping[str, _Reader], required: Sequence[str] = ()) -> Dict[str, Any]:
    """Return what the readers make of a mapping's values."""
    if not isinstance(value, dict):
        raise at.wrong(value, "a mapping of %s" % ", ".join(readers))
    for key in value:
        if key not in readers:
            raise _unknown(at, key, readers)
    for key in required:
        if key not in value:
            raise at.refuse("lacks the key %s" % key)
    return {key: readers[key](at.below(key), each) for key, each in value.items()}


def _unknown(at: _At, key: Any, known: Mapping[str, _Reader]) -> UsageError:
    if isinstance(key, str) and "password" in key:
        return at.below(key).refuse(
            "does not belong in a job: put the password into an option file with mode 0600 and name that file as mysql.config_file"
        )
    near = _nearest(str(key), known)
    hint = "did you mean %s?" % near if near else "known are %s" % ", ".join(known)
    return at.below(str(key)).refuse("is not a key that a job has; %s" % hint)


def _nearest(word: str, known: Iterable[str]) -> Optional[str]:
    """Return the one of the known words that was probably meant."""
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), 1)), None)


def _text(at: _At, value: Any) -> str:
    if not isinstance(value, str):
        raise at.wrong(value, "text (in quotes, where it looks like a number or a date)")
    if not value.strip() or _CONTROL.search(value):
        raise at.wrong(value, "text on one line")
    return value


def _name(at: _At, value: Any) -> str:
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise at.wrong(value, "a name of up to 64 letters, digits, '_', '.' and '-' that begins with a letter or digit")
    return value


def _flag(at: _At, value: Any) -> bool:
    if not isinstance(value, bool):
        raise at.wrong(value, "true or false")
    return value


def _whole(least: int, most: int = 2**31 - 1) -> _Reader:
    def read(at: _At, value: Any) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise at.wrong(value, "a whole number from %d%s" % (least, " to %d" % most if most < 2**31 - 1 else ""))
        return value

    return read


def _one_of(*choices: str) -> _Reader:
    def read(at: _At, value: Any) -> str:
        if value not in choices:
            raise at.wrong(value, "one of %s" % ", ".join(choices) if len(choices) > 1 else choices[0])
        return str(value)

    return read


def _mysql(at: _At, value: Any) -> MysqlOptions:
    options = MysqlOptions(**_read(at, value, _MYSQL))
    for key in ("databases", "split", "source"):
        if key in value and not options.is_dump:
            raise at.below(key).refuse("is for dumps alone: add method: dump, or leave it out")
    return options


def _path(at: _At, value: Any) -> str:
    text = _text(at, value)
    if not text.startswith("/"):
        raise at.wrong(value, "an absolute path")
    if ".." in text.split("/"):
        raise at.wrong(value, "a path without '..'")
    path = "/" + os.path.normpath(text).lstrip("/")
    if path == "/":
        raise at.wrong(value, "a directory below the root")
    return path


def _list(of: _Reader) -> _Reader:
    def read(at: _At, value: Any) -> Tuple[Any, ...]:
        if not isinstance(value, list):
            raise at.wrong(value, "a list")
        items = tuple(of(_At(at.where, "%s[%d]" % (at.key, number)), item) for number, item in enumerate(value))
        for item in items:
            if items.count(item) > 1:
                raise at.refuse("has %s twice" % item)
        return items

    return read


def _filled(at: _At, items: Tuple[Any, ...]) -> Tuple[Any, ...]:
    if not items:
        raise at.refuse("is empty: leave it out for all databases")
    return items


def _pattern(at: _At, value: Any) -> str:
    text = _text(at, value)
    if text == "!" or text.startswith(("+ ", "- ")):
        # --exclude keeps rsync's old prefixes: "+ x" would include
        raise at.wrong(value, "a pattern; rsync reads a leading '+ ', '- ' or a lone '!' as a rule of another kind")
    return text


def _size(at: _At, value: Any) -> sizes.Size:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise at.wrong(value, "auto, 1g, 512m, 20%ORIGIN or 50%FREE")
    try:
        return sizes.parse(value)
    except UsageError as error:
        raise at.wrong(value, "auto, 1g, 512m, 20%ORIGIN or 50%FREE") from error


def _rate(at: _At, value: Any) -> str:
    text = str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else value
    if not isinstance(text, str) or not re.fullmatch(_RATE, text) or float(text.rstrip("KMGkmg")) == 0:
        raise at.wrong(value, "a rate as rsync takes it: 5000 (KiB/s), 20M, 1.5G")
    return text


def _repository(at: _At, value: Any) -> str:
    if isinstance(value, str) and "://" in value:
        raise at.wrong(value, "an absolute path on this host; repositories elsewhere are not supported yet")
    return _path(at, value)


def _schedule(at: _At, value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        # YAML 1.1 reads 22:00 without quotes as a number in base 60
        minutes, seconds = (value, 0) if value < 24 * 60 else divmod(value, 60)
        clock = "%02d:%02d" % divmod(minutes, 60) + (":%02d" % seconds if value >= 24 * 60 else "")
        raise at.refuse('is the number %d: a time without quotes is one to YAML; write "%s" if that is what you meant' % (value, clock))
    return _text(at, value)


def _ping_url(at: _At, value: Any) -> str:
    wrong = at.refuse("is not a URL on one line that begins with https:// or http://")  # no sentence must show it: it may be a secret
    if not isinstance(value, str) or _CONTROL.search(value):
        raise wrong
    from urllib.parse import urlsplit

    text = value
    try:
        parts = urlsplit(text)
        _port = parts.port  # both raise ValueError: a bracket that is not closed, a port that is no number
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or " " in text:
        raise wrong
    return text


def _command(at: _At, value: Any) -> Tuple[str, ...]:
    import shlex

    try:
        words = tuple(shlex.split(_text(at, value))) if not isinstance(value, list) else tuple(_text(at, word) for word in value)
    except ValueError as error:
        raise at.wrong(value, "a command whose quotes are closed") from error
    if not words or not words[0].startswith("/"):
        raise at.wrong(value, "a command that begins with the absolute path of a program")
    return words


def _keep(at: _At, value: Any) -> Keep:
    keep = Keep(**_read(at, value, {kind: _whole(0) for kind in Keep._fields}))
    if keep == Keep():
        raise at.refuse(
            "keeps nothing: give at least one of %s, or leave keep out to keep everything" % ", ".join(Keep._fields)
        )
    return keep


def _table(at: _At, value: Any) -> str:
    schema, _dot, table = _text(at, value).partition(".")
    if not schema or not table:
        raise at.wrong(value, "a table as schema.table, or all of a schema as schema.*")
    return str(value)


def _verify(at: _At, value: Any) -> Verify:
    verify = Verify(**_read(at, value, {"server": _flag, "tables": _one_of(*options.MODES), "schedule": _schedule, "accept": _list(_table)}))
    if not verify.server and "tables" in value:
        raise at.below("tables").refuse("needs verify.server: true, as a server has to be started to check tables")
    return verify


def _binlog(at: _At, value: Any) -> Optional[BinlogOptions]:
    options = BinlogOptions(**_read(at, value, {"archive": _flag, "method": _one_of(*ARCHIVE_METHODS)}, required=("archive",)))
    return options if options.archive else None


_MYSQL: Dict[str, _Reader] = {
    "method": _one_of(*METHODS),
    "lock": _one_of(*LOCKS),
    "login_user": _text,
    "login_host": _text,
    "login_port": _whole(1, 65535),
    "login_unix_socket": _path,
    "config_file": _path,
    "ca_cert": _path,
    "client_cert": _path,
    "client_key": _path,
    "check_hostname": _flag,
    "connect_timeout": _whole(1),
    "lock_wait_timeout": _whole(1),
    "long_query_threshold": _whole(0),
    "long_query_timeout": _whole(0),
    "long_query_action": _one_of(*LONG_QUERY_ACTIONS),
    "databases": lambda at, value: _filled(at, _list(_text)(at, value)),
    "split": _flag,
    "source": _one_of(*SOURCES),
    "stop_replica": _flag,
    "desync": _flag,
}

_NOTIFY: Dict[str, _Reader] = {"ping_url": _ping_url, "command": _command, "metrics": _path}

_JOB: Dict[str, _Reader] = {
    "name": _name,
    "mysql": _mysql,
    "files": _list(_path),
    "exclude": _list(_pattern),
    "snapshot_size": _size,
    "repository": _repository,
    "keep": _keep,
    "bwlimit": _rate,
    "checksum": _flag,
    "binlog": _binlog,
    "schedule": _schedule,
    "notify": lambda at, value: Notify(**_read(at, value, _NOTIFY)),
    "verify": _verify,
}


def _inside(path: str, directory: str) -> bool:
    """Tell whether a path is a directory or lies in it, by their names."""
    return path == directory or path.startswith(directory + "/")


# --- the file


def _read_yaml(path: str, asked: str) -> Any:
    """Return what a job file says.

    :raises UsageError: it is missing, may be written by others, or is not YAML
    """
    try:
        import yaml
    except ImportError as error:
        raise StillpointError("the Python module yaml is missing for %s: install the package python3-yaml" % sys.executable) from error

    class Loader(yaml.SafeLoader):
        """Refuses a key that is given twice, where YAML would quietly take the last, and tells where a value stands that it can't read."""

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            try:
                return super().construct_object(node, deep)
            except (ValueError, LookupError, TypeError, AttributeError) as error:  # what PyYAML lets out for 2026-02-30, 0x_, !!int x
                shown = _shown(node.value) if isinstance(node, yaml.ScalarNode) else "what begins here"
                raise UsageError(
                    "%s: line %d: %s can't be read (%s): put it in quotes if it is meant as text" % (path, node.start_mark.line + 1, shown, error)
                ) from error

    def construct_mapping(loader: Any, node: Any) -> Dict[Any, Any]:
        seen = set()
        for key_node, _value in node.value:
            line = key_node.start_mark.line + 1
            if not isinstance(key_node, yaml.ScalarNode):  # {{ name }} without quotes is one, too
                raise UsageError("%s: line %d: a mapping or a list can't be a key: put a value that begins with { or [ in quotes" % (path, line))
            if key_node.value in seen:
                raise UsageError("%s: line %d: the key %s is given twice" % (path, line, key_node.value))
            seen.add(key_node.value)
        loader.flatten_mapping(node)
        mapping: Dict[Any, Any] = loader.construct_mapping(node, deep=True)
        return mapping

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, construct_mapping)
    try:
        with open(path, encoding="utf-8") as file:
            _check_trust(path, os.fstat(file.fileno()))
            return yaml.load(file, Loader)  # a SafeLoader
    except FileNotFoundError as error:
        raise UsageError(_no_such_job(path, asked)) from error
    except OSError as error:
        raise UsageError("the job file %s can't be read: %s" % (path, error.strerror)) from error
    except UnicodeDecodeError as error:
        raise UsageError("%s: not a text file in UTF-8" % path) from error
    except yaml.MarkedYAMLError as error:
        line = "line %d: " % (error.problem_mark.line + 1) if error.problem_mark else ""
        raise UsageError("%s: %snot YAML: %s" % (path, line, error.problem or "it can't be read")) from error
    except yaml.YAMLError as error:
        raise UsageError("%s: not YAML: %s" % (path, " ".join(str(error).split()))) from error
    except RecursionError as error:
        raise UsageError("%s: not a job: lists or mappings lie in each other too deep" % path) from error


def _check_trust(path: str, info: os.stat_result) -> None:
    """Raise UsageError when somebody other than root may have written a job: it names paths to read and a command to run as root."""
    if not stat.S_ISREG(info.st_mode):
        raise UsageError("the job file %s is not a file" % path)
    if info.st_uid not in (0, os.geteuid()):
        raise UsageError("the job file %s belongs to user %d and runs as root: chown root it" % (path, info.st_uid))
    if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            "the job file %s can be written by others than its owner (mode %04o) and runs as root: chmod go-w it"
            % (path, stat.S_IMODE(info.st_mode))
        )


def _no_such_job(path: str, asked: str) -> str:
    if "/" in asked:
        return "there is no job file %s" % path
    known = job_names()
    near = _nearest(asked, known)
    hint = "did you mean %s?" % near if near else "there are %s" % ", ".join(known) if known else "there are no jobs at all"
    return "there is no job %s in %s; %s" % (asked, jobs_directory(), hint)
