#!/usr/bin/python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""A systemctl for hosts without systemd: units are read from $UNITS, and what they were told to do is kept in $STATE."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Dict, List


class Systemctl:
    """Called with the arguments of a systemctl, it returns what that prints."""

    def __init__(self, units: Path, state: Path) -> None:
        self._units = units
        self._file, self._log = state / "state.json", state / "log"

    @property
    def known(self) -> Dict[str, Any]:
        return json.loads(self._file.read_text()) if self._file.exists() else {"started": {}, "read": 0}

    @known.setter
    def known(self, value: Dict[str, Any]) -> None:
        self._file.write_text(json.dumps(value))

    def told(self) -> List[str]:
        """Return what it was told to do since the last time."""
        said = self._log.read_text().splitlines() if self._log.exists() else []
        self._log.write_text("")
        return said

    def __call__(self, verb: str, *rest: str) -> str:
        names = [each for each in rest if not each.startswith("-") and "*" not in each]
        if verb == "show":
            return "\n".join(self._shown(name) for name in names)
        with open(self._log, "a", encoding="utf-8") as log:
            print(verb, *names, file=log)
        known = self.known
        for name in names:
            if not self._unit_file(name).exists():
                raise ValueError("Failed to %s unit: Unit file %s does not exist." % (verb, name))
            for link in self._links(name) if verb in ("enable", "disable") else ():
                link.parent.mkdir(exist_ok=True)
                if link.is_symlink():
                    link.unlink()
                if verb == "enable":
                    link.symlink_to(self._unit_file(name))
            if verb in ("start", "restart"):
                known["started"][name] = time.monotonic()
            if verb in ("stop", "disable"):
                known["started"].pop(name, None)
        if verb in ("enable", "daemon-reload"):
            known["read"] = time.time()
        self.known = known
        return ""

    def _unit_file(self, name: str) -> Path:
        own = self._units / name
        return own if own.exists() else self._units / re.sub("@.*(?=[.])", "@", name)

    def _links(self, name: str) -> List[Path]:
        wanted_by = re.findall("^WantedBy=(.*)", self._unit_file(name).read_text(), re.MULTILINE)
        return [self._units / (target + ".wants") / name for target in wanted_by]

    def _shown(self, name: str) -> str:
        file, known = self._unit_file(name), self.known
        drop_in = self._units / (name + ".d") / "stillpoint.conf"
        changed = [each.lstat().st_mtime for each in (file, drop_in) if each.exists()]
        said = {
            "Id": name,
            "LoadState": "loaded" if file.exists() else "not-found",
            "UnitFileState": "enabled" if file.exists() and all(link.is_symlink() for link in self._links(name)) else "",
            "ActiveState": "active" if name in known["started"] else "inactive",
            "NeedDaemonReload": "yes" if name in known["started"] and any(each > known["read"] for each in changed) else "no",
            "ActiveEnterTimestampMonotonic": int(known["started"].get(name, 0) * 1e6),
        }
        return "".join("%s=%s\n" % item for item in said.items())


if __name__ == "__main__":
    print(Systemctl(Path(os.environ["UNITS"]), Path(os.environ["STATE"]))(*sys.argv[1:]))
