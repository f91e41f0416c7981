# SPDX-License-Identifier: GPL-3.0-or-later
"""Reading what a job says: one schema for the role's variable, the job file and the agent.

Every fault is a UsageError that names file, key and what is expected, so that nothing starts on a job that says something
else than its author meant: an unknown key is refused, and so is one that this version would ignore.
"""

from __future__ import annotations

import os
import re
from typing import Any, Callable, Dict, Iterable, Mapping, NamedTuple, Optional, Sequence, Tuple

from ..host.errors import UsageError
from ..lvm import sizes
from .options import ARCHIVE_METHODS, LOCKS, LONG_QUERY_ACTIONS, METHODS, MODES, SOURCES, BinlogOptions, Copy, Job, Keep, MysqlOptions, Notify, Verify, is_rate

# What only some jobs need is imported for those: `list` reads the jobs of whole fleets.
# pylint: disable=import-outside-toplevel

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


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
    for copy in job.copies:
        if _inside(copy.to, job.repository) or _inside(job.repository, copy.to):
            raise UsageError("%s: the copy %s lies in the repository %s: a copy is for another disk or machine" % (where, copy.name, job.repository))
    return job


# --- reading: each reader takes where a value stands and the value, and returns what the Job gets


class _At(NamedTuple):
    """Where a value stands: in which file, under which key."""

    where: str
    key: str = ""

    def below(self, key: str) -> "_At":
        return _At(self.where, "%s.%s" % (self.key, key) if self.key else key)

    def wrong(self, value: Any, expected: str) -> UsageError:
        return self.refuse("is %s, expected %s" % (shown(value), expected))

    def refuse(self, text: str) -> UsageError:
        return UsageError("%s: %s %s" % (self.where, self.key or "the job", text))


_Reader = Callable[[_At, Any], Any]


def shown(value: Any) -> str:
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
    if isinstance(key, str) and "password" in key and at.key.startswith("copies"):
        return at.below(key).refuse("does not belong in a job: put the password into the secrets file of the copy, with mode 0600")
    if isinstance(key, str) and "password" in key:
        return at.below(key).refuse(
            "does not belong in a job: put the password into an option file with mode 0600 and name that file as mysql.config_file"
        )
    near = nearest(str(key), known)
    hint = "did you mean %s?" % near if near else "known are %s" % ", ".join(known)
    return at.below(str(key)).refuse("is not a key that a job has; %s" % hint)


def nearest(word: str, known: Iterable[str]) -> Optional[str]:
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
    if not isinstance(text, str) or not is_rate(text):
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
    verify = Verify(**_read(at, value, {"server": _flag, "tables": _one_of(*MODES), "schedule": _schedule, "accept": _list(_table)}))
    if not verify.server and "tables" in value:
        raise at.below("tables").refuse("needs verify.server: true, as a server has to be started to check tables")
    return verify


def _destination(at: _At, value: Any) -> str:
    """Return where a copy goes. No sentence shows the value: an account in it may have a password."""
    text = value if isinstance(value, str) else ""
    if re.match(r"[a-z0-9]+:(https?:)?//[^/]*@", text) or re.match(r"sftp:[^@/]*:[^@/]*@", text):
        raise at.refuse("has an account in it: put its name and password into the secrets file of the copy, with mode 0600")
    if text.startswith("/"):
        return _path(at, text)
    if re.match(r"(rest|s3):http:", text) and not re.match(r"(rest|s3):http://(localhost|127\.0\.0\.1|\[::1\])[:/]", text):
        raise at.refuse("would send passwords over the network for everybody to read: use https://")
    if _CONTROL.search(text) or not re.fullmatch(r"(rest|s3):https?://[^/\s?#]+/[^\s?#]+|sftp:([^:@/\s]+@)?[^:@/\s]+:/\S+", text):
        raise at.refuse("is no destination: expected rest:https://HOST/PATH, s3:https://HOST/BUCKET/PATH, sftp:USER@HOST:/PATH or a directory")
    return text.rstrip("/")


def _copy(at: _At, value: Any) -> Copy:
    values = _read(at, value, _COPY, required=("name", "to"))
    defaults = {"secrets": "/etc/stillpoint/secrets/%s" % values["name"], "append_only": values["to"].startswith(("rest:", "s3:"))}
    copy = Copy(**{**defaults, **values})
    if copy.append_only and copy.keep:
        raise at.below("keep").refuse("is for a copy from which this host may remove backups: leave it to the other side, or say append_only: false")
    return copy


def _copies(at: _At, value: Any) -> Tuple[Copy, ...]:
    copies: Tuple[Copy, ...] = _list(_copy)(at, value)
    for key in ("name", "to"):
        used = [getattr(copy, key) for copy in copies]
        for each in used:
            if used.count(each) > 1:
                raise at.refuse("has the %s %s twice" % (key, each))
    return copies


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

_COPY: Dict[str, _Reader] = {"name": _name, "to": _destination, "secrets": _path, "bwlimit": _rate, "append_only": _flag, "keep": _keep}

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
    "copies": _copies,
}


def _inside(path: str, directory: str) -> bool:
    """Tell whether a path is a directory or lies in it, by their names."""
    return path == directory or path.startswith(directory + "/")
