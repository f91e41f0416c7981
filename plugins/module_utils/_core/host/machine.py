# SPDX-License-Identifier: GPL-3.0-or-later
"""Which machine this is, whatever it is called."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional

# A clone made by a hypervisor has the first of its origin until somebody renews it, and a second of its own.
MACHINE_ID = "/etc/machine-id"
HARDWARE_ID = "/sys/class/dmi/id/product_uuid"

_RUN = "/run"


@dataclass(frozen=True)
class Machine:
    """What tells a machine from others of its name.

    :ivar id: machine-id(5); None where there is none that lasts
    :ivar hardware: the UUID that the firmware, or the hypervisor, gives it; None where it gives none
    """

    id: Optional[str] = None
    hardware: Optional[str] = None

    def as_dict(self) -> Dict[str, Any]:
        """Return it as the manifest keeps it."""
        return {"id": self.id, "hardware": self.hardware}

    def difference(self, other: "Machine") -> str:
        """Return in words what shows that these are two machines; "" where nothing does."""
        if self.id and other.id and self.id != other.id:
            return "machine-id %s, here %s" % (other.id, self.id)
        if self.hardware and other.hardware and self.hardware != other.hardware:
            return "hardware UUID %s, here %s" % (other.hardware, self.hardware)
        return ""

    def is_same(self, other: "Machine") -> bool:
        """Tell whether these are known to be one machine."""
        return bool(self.id) and self.id == other.id and not self.difference(other)


def from_dict(facts: Any) -> Machine:
    """Return the Machine that `Machine.as_dict` described; one of which nothing is known where that is missing."""
    known: Mapping[str, Any] = facts if isinstance(facts, dict) else {}
    return Machine(known.get("id") or None, known.get("hardware") or None)


def this_machine() -> Machine:
    """Return the Machine that this runs on."""
    return Machine(_machine_id(), _line(HARDWARE_ID))


def _machine_id() -> Optional[str]:
    """Return the machine-id; None where each boot makes another one, which systemd then lays over the file from /run."""
    found = _line(MACHINE_ID)
    try:
        lasts = os.stat(MACHINE_ID).st_dev != os.stat(_RUN).st_dev or os.stat(_RUN).st_dev == os.stat("/").st_dev
    except OSError:
        return None
    return found if found and found != "uninitialized" and lasts else None


def _line(path: str) -> Optional[str]:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read().strip().lower() or None
    except OSError:
        return None
