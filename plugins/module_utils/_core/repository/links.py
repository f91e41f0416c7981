# SPDX-License-Identifier: GPL-3.0-or-later
"""How many names a file can have in a repository: ext4 takes 65,000, and a file that generations share has all of theirs."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

# Every file system that keeps hard links takes as many: below, nothing has to be found out.
SAFE = 1000

_MOST = 1 << 17  # what takes more has no limit that matters


def limit(directory: str, wanted: int) -> int:
    """Return how many names a file can have, found out by trying, up to some that are wanted.

    :param directory: on the file system in question; it is left as it was
    """
    place = tempfile.mkdtemp(prefix=".links-", dir=directory)
    try:
        first = os.path.join(place, "0")
        with open(first, "wb"):
            pass
        for number in range(1, min(wanted, _MOST)):
            try:
                os.link(first, os.path.join(place, str(number)))
            except OSError as error:
                if error.errno != errno.EMLINK:
                    raise
                return number
        return wanted
    finally:
        shutil.rmtree(place)
