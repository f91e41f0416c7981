# SPDX-License-Identifier: GPL-3.0-or-later
"""Option files of the server's own clients: what they say, as those clients take it, and one that is written for a client.

What a file says is asked of ``my_print_defaults``, which comes with the clients. Where it is not installed, the rules of its source
(mysys/my_default.c) are applied here.
"""

from __future__ import annotations

import os
import re
import shutil
from functools import lru_cache
from typing import Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import CommandError, UsageError
from ..host.process import PATH, run

# The groups that every client of a server reads; each reads one of its own name besides, which the others know nothing of.
_GROUPS = {"mariadb": ("client", "client-server", "client-mariadb"), "mysql": ("client",)}

# What an option file may say of a connection, without the forms that have another name for the same.
KNOWN = (
    "user", "password", "host", "port", "socket", "protocol", "default-auth", "plugin-dir", "ssl", "ssl-ca", "ssl-capath", "ssl-cert", "ssl-key",
    "ssl-cipher", "ssl-crl", "ssl-crlpath", "ssl-mode", "ssl-verify-server-cert", "tls-version", "get-server-public-key", "server-public-key-path",
)  # fmt: skip
_NEED_A_VALUE = ("user", "password", "host", "port", "socket")
_SHORTEST = 3  # letters of a name that clients complete

_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "s": " ", '"': '"', "'": "'", "\\": "\\"}
_DEEPEST = 10  # option files that include one another
_IN_LINE = re.compile(r"line:? (\d+)")


def read(path: str) -> Dict[str, str]:
    """Return what an option file says of a connection, by the names in KNOWN; a flag is "1" or "0".

    :raises UsageError: it can't be read, or a client would refuse it; no value is shown
    """
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise UsageError("the option file %s can't be read: %s" % (path, error.strerror)) from error
    program = shutil.which("my_print_defaults", path=PATH)
    lines = _printed(program, path) if program else _parsed(path, _GROUPS["mariadb"])
    if not lines and not set(_GROUPS["mariadb"]) & {group for group, _line in _lines(path)}:
        raise UsageError("the option file %s has no section [client]" % path)
    found = dict(_options(lines))
    for name in _NEED_A_VALUE:
        if found.get(name) is None and name in found:
            raise UsageError("the option file %s names %s without a value" % (path, name))
    port = found.get("port") or "1"
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError("the port in the option file %s is not a number from 1 to 65535" % path)
    return {name: "1" if value is None else value for name, value in found.items()}


def text(options: Mapping[str, str], mark: str = "") -> str:
    """Return an option file that says this, as every version of the clients reads it back.

    :param mark: a comment for its first line
    """
    return "".join(line + "\n" for line in ([mark] if mark else []) + ["[client]"] + ["%s=%s" % (name, _quoted(options[name])) for name in options])


def write(path: str, options: Mapping[str, str], mark: str = "") -> str:
    """Write a new option file, which only its owner can read, to the disk, and return its path; otherwise as `text`.

    :raises OSError: it can't be written, or there is a file
    """
    with open(path, "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_EXCL, 0o600)) as file:
        file.write(text(options, mark))
        file.flush()
        os.fsync(file.fileno())
    return path


def _quoted(value: str) -> str:
    escapes = {"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t", "\b": "\\b"}
    return '"%s"' % "".join(escapes.get(letter, letter) for letter in value)


# --- as the clients' own program prints it


def _printed(program: str, path: str) -> List[str]:
    """Return ``--name=value`` for each option of the clients' groups.

    :raises UsageError: the program refuses the file
    """
    flavour = _flavour(program)
    argv = [program, "--defaults-file=" + path, *(["--show"] if flavour == "mysql" else []), *_GROUPS[flavour]]
    try:
        result = run(argv, timeout=30)
    except CommandError as error:
        raise _refused(path, error.stderr) from None
    if "orld-writable" in result.stderr:
        raise UsageError("the option file %s is writable for everybody, so that the server's clients ignore it: chmod 600 %s" % (path, path))
    if not result.stdout and "rror" in result.stderr:
        raise _refused(path, result.stderr)
    return _joined(result.stdout)


def _joined(printed: str) -> List[str]:
    """Return the options of the output; a value with a line break in it goes on in the next line."""
    options: List[str] = []
    for line in printed.split("\n")[:-1]:
        if line.startswith("--") or not options:
            options.append(line)
        else:
            options[-1] += "\n" + line
    return options


@lru_cache(maxsize=1)
def _flavour(program: str) -> str:
    """Return whose program it is: MySQL's hides passwords unless it is told to show them."""
    return "mysql" if "--show" in run([program, "--help"], timeout=30, check=False).stdout else "mariadb"


def _refused(path: str, said: str) -> UsageError:
    """Return the refusal of a file that the clients do not take; what they say may quote it, so that only the line is named."""
    found = _IN_LINE.search(said)
    where = " (line %s)" % found.group(1) if found else ""
    return UsageError(
        "the option file %s is not an option file%s: it needs a line [client] and lines of the form key = value" % (path, where)
    )


# --- by the same rules, without the program


def _parsed(path: str, groups: Sequence[str]) -> List[str]:
    return [line for group, line in _lines(path) if group in groups and line]


def _lines(path: str, depth: int = 0) -> Iterator[Tuple[str, str]]:
    """Give each option as (group, ``--name=value``), and (group, "") where a group begins.

    :raises UsageError: it is not an option file
    """
    group = ""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().split("\n")
    except OSError as error:
        raise UsageError("the option file %s can't be read: %s" % (path, error.strerror)) from error
    for number, line in enumerate(map(str.strip, lines), 1):
        if not line or line[0] in "#;":
            continue
        if line[0] == "!":
            for included in _included(line):
                if depth < _DEEPEST:
                    yield from _lines(included, depth + 1)
        elif line[0] == "[":
            group, closed, _rest = line[1:].partition("]")
            if not closed:
                raise _refused(path, "line %d" % number)
            group = group.strip()
            yield group, ""
        elif not group:
            raise _refused(path, "line %d" % number)
        else:
            name, equals, value = _without_comment(line).partition("=")
            yield group, "--" + name.strip() + (equals and "=" + _unescaped(value.strip()))


def _included(line: str) -> List[str]:
    word, _space, path = line[1:].partition(" ")
    path = path.strip()
    if word == "includedir":
        return [os.path.join(path, name) for name in sorted(os.listdir(path)) if name.endswith(".cnf")] if os.path.isdir(path) else []
    return [path] if word == "include" else []


def _without_comment(line: str) -> str:
    """Return a line up to a ``#`` that stands outside of quotes."""
    quote, escaped = "", False
    for at, letter in enumerate(line):
        if letter in "'\"" and not escaped:
            quote = letter if not quote else "" if letter == quote else quote
        if letter == "#" and not quote:
            return line[:at]
        escaped = bool(quote) and letter == "\\" and not escaped
    return line


def _unescaped(value: str) -> str:
    if len(value) > 1 and value[0] in "'\"" and value[-1] == value[0]:
        value = value[1:-1]
    return re.sub(r"\\([\s\S])", lambda found: _ESCAPES.get(found.group(1), found.group(0)), value)


# --- what the options are


def _options(lines: Sequence[str]) -> Iterator[Tuple[str, Optional[str]]]:
    """Give name and value of each option that is known; None for a flag without a value."""
    for line in lines:
        name, equals, value = line[2:].partition("=")
        name = name.replace("_", "-")
        name = name[len("loose-") :] if name.startswith("loose-") else name
        on = not name.startswith(("skip-", "disable-"))
        name = re.sub("^(skip|disable|enable)-", "", name)
        matches = [name] if name in KNOWN else [known for known in KNOWN if known.startswith(name) and len(name) >= _SHORTEST]
        if len(matches) == 1:
            yield matches[0], "0" if not on else value if equals else None
