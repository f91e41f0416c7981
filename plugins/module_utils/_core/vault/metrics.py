# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics of a vault, a line for each host."""

from __future__ import annotations

import sys
from typing import Iterable, List

from ..observe import metrics
from . import ledger as ledgers
from . import state as states
from .layout import HostDirectory
from .settings import Settings

_LABEL = "backup_host"


def write(settings: Settings, hosts: Iterable[HostDirectory]) -> None:
    """Write how the hosts stand, where the vault's file names a directory for that."""
    if settings.metrics:
        samples = [sample for host in hosts for sample in _of_host(host)]
        metrics.write(settings.metrics, "vault", "hosts", sorted(samples, key=lambda sample: sample[0]), _complain)


def _complain(text: str) -> None:
    sys.stderr.write(text + "\n")


def _of_host(host: HostDirectory) -> List[metrics.Sample]:
    state, ledger = states.read(host), ledgers.read(host.ledger)
    labels = {_LABEL: host.host}
    present, sound = ledger.present(), ledger.newest_sound()
    figures = {
        "copies": len(present),
        "newest_timestamp_seconds": present[-1].arrived if present else None,
        "sound_timestamp_seconds": max((each.arrived for each in sound), default=None),
        "checked_timestamp_seconds": state.checked,
        "alarms": len(state.alarms),
        "frozen": float(host.is_frozen),
    }
    return [("vault_" + name, labels, float(value)) for name, value in figures.items() if value is not None]
