# SPDX-License-Identifier: GPL-3.0-or-later
"""The systemd unit of a server whose data is replaced: stopped for that, kept from starting meanwhile, started after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Tuple

from ..host import service
from ..host.errors import StillpointError
from ..host.reporter import Reporter


@dataclass(frozen=True)
class Unit:
    """A server's unit.

    :ivar triggers: the units that would start it by themselves, which are stopped and started with it
    :ivar datadir: where its server works
    :ivar new_cluster: the server starts as the first node of a Galera cluster
    """

    name: str
    triggers: Tuple[str, ...]
    datadir: str
    new_cluster: bool = False

    def __str__(self) -> str:
        return " and ".join([self.name, *self.triggers])

    def stop(self) -> None:
        """Stop it, and have systemd refuse to start it until `allow`.

        :raises StillpointError: it does not stop, or can't be kept from starting
        """
        service.stop(self.name, self.triggers)
        service.forbid(self.name)

    def allow(self) -> None:
        """Let systemd start it again.

        :raises StillpointError: that can't be done
        """
        service.allow(self.name)

    def start(self) -> None:
        """Start it, and wait until its server answers.

        :raises StillpointError: it does not start, or does not answer
        """
        service.start(self.name, self.datadir, self.triggers, self.new_cluster)

    def start_again(self, reporter: Reporter, so_far: str) -> None:
        """Start it after all: its data is not replaced. What keeps it from starting is a warning.

        :param so_far: what became of its data, for that warning
        """
        try:
            self.allow()
            self.start()
        except StillpointError as error:
            reporter.warn("%s; %s" % (error, so_far))
