# SPDX-License-Identifier: GPL-3.0-or-later
"""Setting a server's binary logs aside when its data is replaced, where they lie beside the data and not in it.

They tell of what happened after the moment that has been restored. A server that went on in them would give a replica, or an
archive, logs that do not describe its data.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Optional

from .. import durable


@dataclass(frozen=True)
class Logs:
    """The binary logs of a server that does not run.

    :ivar basename: their path without the number
    :ivar stamp: the time of the restore, as it is in the names of what it keeps
    """

    basename: str
    stamp: str

    @property
    def kept(self) -> str:
        """The directory that they are kept in."""
        return "%s.replaced-%s" % (self.basename, self.stamp)

    def set_aside(self) -> Optional[str]:
        """Move them into a directory beside them, whatever of that was done before, and return it; None: there are none."""
        directory, stem = os.path.split(self.basename)
        own = re.compile(re.escape(stem) + r"\.(\d{6,}(\.idx)?|index|state)")
        names = sorted(name for name in os.listdir(directory) if own.fullmatch(name)) if os.path.isdir(directory) else []
        if names and not os.path.isdir(self.kept):
            os.mkdir(self.kept, 0o700)
            durable.sync_directory(directory)
        for name in names:
            os.rename(os.path.join(directory, name), os.path.join(self.kept, name))
        if names:
            durable.sync_directory(self.kept)
            durable.sync_directory(directory)
        return self.kept if os.path.isdir(self.kept) else None
