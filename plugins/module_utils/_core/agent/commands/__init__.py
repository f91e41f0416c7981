# SPDX-License-Identifier: GPL-3.0-or-later
"""The agent's commands, a module for each: what it does in words, its arguments, and how it is run."""

from __future__ import annotations

import importlib

TYPE_CHECKING = False  # as in main
if TYPE_CHECKING:
    import argparse
    from typing import Protocol

    class Command(Protocol):
        """What the module of a command has."""

        TEXT: str

        def add_arguments(self, parser: argparse.ArgumentParser) -> None:
            """Add the command's own arguments."""

        def run(self, arguments: argparse.Namespace) -> int:
            """Do it and return the exit code."""


NAMES = (
    "plan", "run", "status", "list", "show", "verify", "restore", "undo", "discard",
    "rollback", "adopt", "copy", "fetch", "prune", "archive", "clean", "vault", "version",
)  # fmt: skip
FOR_EVERYBODY = ("version",)  # not root alone


def load(name: str) -> Command:
    """Return the command of this name."""
    module: Command = importlib.import_module("." + name, __name__)
    return module
