# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent as one file: this package in a zip archive that Python runs. The same sources give the same bytes, everywhere."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from typing import Iterator, Tuple

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


def build(interpreter: str = INTERPRETER) -> bytes:
    """Return the agent's file, to be written with mode 0755.

    Its parts are stored, not deflated: two builds of zlib need not deflate to the same bytes, and a deploy from another
    workstation would then change every host.

    :param interpreter: of the host that it will run on; isolated (-I), so that neither the environment nor a home
        directory brings code into a program that root runs
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in [("__main__.py", _MAIN.encode("ascii")), *_sources()]:
            info = zipfile.ZipInfo(name, _EPOCH)
            info.create_system = _UNIX
            info.external_attr = _MODE
            archive.writestr(info, content)
    return b"#!%s -I\n" % os.fsencode(interpreter) + out.getvalue()


def _sources() -> Iterator[Tuple[str, bytes]]:
    """Give name in the archive and content of each module of this package but this one, sorted."""
    root = os.path.dirname(os.path.abspath(__file__))
    found = []
    for directory, _directories, files in os.walk(root):
        found += [os.path.relpath(os.path.join(directory, name), root) for name in files if name.endswith(".py")]
    for name in sorted(set(found) - {os.path.basename(__file__)}):
        with open(os.path.join(root, name), "rb") as file:
            yield "%s/%s" % (PACKAGE, name), file.read()


def main() -> int:
    """Write the agent to the path that is the only argument."""
    if len(sys.argv) != 2:
        print("usage: bundle OUT", file=sys.stderr)  # pylint: disable=ansible-bad-function  # a program, not a module
        return 2
    with open(sys.argv[1], "wb") as file:
        file.write(build())
    os.chmod(sys.argv[1], 0o755)
    return 0


if __name__ == "__main__":
    sys.exit(main())  # pylint: disable=ansible-bad-function  # a program, not a module
