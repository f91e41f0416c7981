# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as one file: this package in a zip archive that Python runs.

`build` makes it of the sources: the same sources give the same bytes, everywhere. `compiled` adds bytecode on the host that it will
run on, since bytecode is of one version of Python. What a file was made of stands in its second line, and `origin` reads it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import re
import sys
import zipfile
from typing import Iterator, NamedTuple, Optional, Tuple

from .host.version import VERSION

PACKAGE = "stillpoint"
INTERPRETER = "/usr/bin/python3"

# Parsed by whatever Python the host has, so that an old one gets a sentence and not a SyntaxError.
_MAIN = """\
# SPDX-License-Identifier: GPL-3.0-or-later
import sys

if sys.version_info < (3, 8):
    sys.exit("stillpoint: %s is Python %d.%d, and 3.8 or newer is needed" % ((sys.executable,) + tuple(sys.version_info[:2])))

from stillpoint.agent.main import main

sys.exit(main())
"""

_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest that a zip archive can hold
_MODE = 0o100644 << 16
_UNIX = 3

_UNCHECKED_HASH = (1).to_bytes(4, "little")  # PEP 552: Python does not compare it with the source

_HEAD = re.compile(
    rb"(?P<interpreter>#!.*)\n# version (?P<version>\S+) sources (?P<sources>\w{64}) bytecode (?P<bytecode>[\w.-]+) content (?P<content>\w{64})\n"
)


class Origin(NamedTuple):
    """What an agent's file was made of: this version, the SHA-256 of what `build` returned, and the bytecode that was added."""

    version: str
    sources: str
    bytecode: str


def build(interpreter: str = INTERPRETER) -> bytes:
    """Return the agent's file without bytecode, to be written with mode 0755.

    Its parts are stored, not deflated: two builds of zlib need not deflate to the same bytes, and a deploy from another
    workstation would then change every host.

    :param interpreter: of the host that it will run on; isolated (-I), so that neither the environment nor a home
        directory brings code into a program that root runs
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [("__main__.py", _MAIN.encode("ascii")), *_sources()]:
            archive.writestr(_entry(name), content)
    return b"#!%s -I\n" % os.fsencode(interpreter) + out.getvalue()


def compiled(agent: bytes, path: str) -> bytes:
    """Return the file that `build` made, with the bytecode of the Python that runs this. Another Python takes the sources.

    :param path: where the agent will lie, for tracebacks
    """
    interpreter, archive = agent.split(b"\n", 1)
    head = b"%s\n%s" % (interpreter, _note(agent, b""))
    out = io.BytesIO(head + archive)
    with zipfile.ZipFile(out, "a", zipfile.ZIP_STORED) as parts:
        for name in parts.namelist():
            parts.writestr(_entry(name + "c"), _bytecode(parts.read(name), os.path.join(path, name)))
    archive = out.getvalue()[len(head) :]
    return b"%s\n%s%s" % (interpreter, _note(agent, interpreter + archive), archive)


def compile_file(sources: str, target: str, path: str) -> None:
    """Write a file as `compiled` returns it for another."""
    with open(sources, "rb") as file:
        content = compiled(file.read(), path)
    with open(target, "wb") as file:
        file.write(content)


def origin(file: bytes) -> Optional[Origin]:
    """Return what an agent's file was made of; None where `compiled` did not make it, or it was changed since."""
    found = _HEAD.match(file)
    if not found or checksum(found["interpreter"] + file[found.end() :]) != found["content"].decode("ascii"):
        return None
    return Origin(*(found[name].decode("ascii") for name in Origin._fields))


def bytecode_version() -> str:
    """Return which bytecode the Python that runs this writes and reads."""
    return "%s-%s" % (sys.implementation.cache_tag, importlib.util.MAGIC_NUMBER.hex())


def checksum(content: bytes) -> str:
    """Return the SHA-256 of what `build` returned: an Origin's sources."""
    return hashlib.sha256(content).hexdigest()


def _note(agent: bytes, content: bytes) -> bytes:
    """Return the second line of a file; it is as long for every content."""
    facts = (VERSION, checksum(agent), bytecode_version(), checksum(content))
    return ("# version %s sources %s bytecode %s content %s\n" % facts).encode("ascii")


def _bytecode(source: bytes, file_name: str) -> bytes:
    """Return the contents of the .pyc file (PEP 552) for a module."""
    code = compile(source, file_name, "exec", dont_inherit=True)
    return importlib.util.MAGIC_NUMBER + _UNCHECKED_HASH + importlib.util.source_hash(source) + marshal.dumps(code)


def _entry(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = _UNIX
    info.external_attr = _MODE
    return info


def _sources() -> Iterator[Tuple[str, bytes]]:
    """Give name in the archive and content of each module of this package, sorted."""
    root = os.path.dirname(os.path.abspath(__file__))
    found = []
    for directory, _directories, files in os.walk(root):
        found += [os.path.relpath(os.path.join(directory, name), root) for name in files if name.endswith(".py")]
    for name in sorted(found):
        with open(os.path.join(root, name), "rb") as file:
            yield "%s/%s" % (PACKAGE, name), file.read()
