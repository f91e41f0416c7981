# SPDX-License-Identifier: GPL-3.0-or-later
"""The options for rsync that a user may add to a copy: those that can't break what a backup promises."""

from __future__ import annotations

from typing import Sequence

from ..host.errors import UsageError

# What is chosen by name or size, what is kept of a file, how fast it goes, what is said. Everything else is refused, also what the next rsync may bring:
# it could write into files that generations share, leave out changed ones, or let a copy that is not complete count as complete.
# fmt: off
ALLOWED = frozenset((
    "--include", "--include-from", "--filter", "--cvs-exclude", "--max-size", "--min-size",
    "--chmod", "--chown", "--usermap", "--groupmap", "--super", "--atimes",
    "--open-noatime", "--omit-dir-times", "--omit-link-times", "--ignore-times", "--no-owner", "--no-group",
    "--no-perms", "--no-acls", "--no-xattrs", "--no-hard-links", "--no-devices", "--no-specials",
    "--no-D", "--no-sparse", "--max-delete", "--delay-updates", "--force", "--whole-file",
    "--no-whole-file", "--block-size", "--preallocate", "--fsync", "--max-alloc", "--temp-dir",
    "--timeout", "--inc-recursive", "--no-inc-recursive", "--verbose", "--info", "--debug",
    "--itemize-changes", "--human-readable", "--no-human-readable", "--log-file", "--log-file-format",
))
# fmt: on
_LETTERS = frozenset("CFIJOUWhiv")

_INSTEAD = {
    **dict.fromkeys(("--checksum", "-c"), "set checksum instead"),
    **dict.fromkeys(("--bwlimit",), "set bwlimit instead"),
    **dict.fromkeys(("--exclude", "--exclude-from"), "set exclude instead"),
    **dict.fromkeys(("--files-from", "--from0"), "name the paths to copy in src or files"),
    **dict.fromkeys(("--one-file-system", "-x"), "what is mounted in a path is copied only where it was named"),
}
_OTHERS = "it could break what a backup promises; the documentation of rsync_opts names those that are passed on"


def check_options(options: Sequence[str]) -> None:
    """Let only options for rsync pass that leave a backup whole.

    :raises UsageError: names the first one that is not among them
    """
    for option in options:
        if not option.startswith("-"):
            raise UsageError(
                "the rsync option %r does not begin with a dash: write an option and its value in one word, --name=value" % option
            )
        name = option.split("=", 1)[0]
        if not (name in ALLOWED if option.startswith("--") else len(option) > 1 and set(option[1:]) <= _LETTERS):
            raise UsageError("the rsync option %s is refused: %s" % (option, _INSTEAD.get(name, _OTHERS)))
