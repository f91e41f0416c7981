# SPDX-License-Identifier: GPL-3.0-or-later
"""A generation that a scratch server can write to, with nothing copied and nothing in the generation changed: a layer over it takes
what is written. Only this process and those it starts see it, and the kernel takes it down with them."""

from __future__ import annotations

import os
from contextlib import ExitStack, contextmanager
from typing import Dict, Iterator, Sequence

from ...host import durable
from ...host.errors import CommandError, StillpointError
from ...host.mounts import enter_private_namespace, unmount
from ...host.process import run, undisturbed
from ...host.processes import process_start
from ...host.run_directory import make_run_directory
from ...repository.generation import Generation, RecordedTree


@contextmanager
def writable(generation: Generation, trees: Sequence[RecordedTree], layer: str) -> Iterator[Dict[str, str]]:
    """Give for the source of each tree the directory at which it can be read and written to.

    :param layer: a directory for what is written, on a file system with room; made anew, and removed at the end
    :raises StillpointError: the kernel can't do it here
    """
    enter_private_namespace()
    durable.remove_tree(layer)
    try:
        with ExitStack() as stack:
            found = {}
            for number, tree in enumerate(trees):
                point = os.path.join(make_run_directory(), "mount-%d-%d-table%d" % (os.getpid(), process_start(os.getpid()) or 0, number))
                lower = os.path.join(generation.path, tree.name)
                stack.enter_context(_mounted(lower, os.path.join(layer, str(number)), point))
                found[os.path.realpath(tree.source)] = point
            yield found
    finally:
        with undisturbed():
            durable.remove_tree(layer)


@contextmanager
def _mounted(lower: str, layer: str, point: str) -> Iterator[None]:
    upper, work = os.path.join(layer, "upper"), os.path.join(layer, "work")
    for directory in (upper, work):
        os.makedirs(directory, 0o700)
    status = os.stat(lower)  # the root of what is seen is the layer's own
    os.chown(upper, status.st_uid, status.st_gid)
    os.chmod(upper, status.st_mode & 0o7777)
    options = ",".join("%s=%s" % (key, _escaped(path)) for key, path in (("lowerdir", lower), ("upperdir", upper), ("workdir", work)))
    try:
        os.mkdir(point, 0o700)
        try:
            run(["mount", "-t", "overlay", "-o", options, "overlay", point])
        except CommandError as error:
            raise StillpointError(
                "no writable layer can be laid over %s (%s): restore the generation into a directory with --to DIR, and start a server there" % (lower, error)
            ) from error
        yield
    finally:
        with undisturbed():
            if os.path.ismount(point):
                unmount(point)
            if os.path.isdir(point):
                os.rmdir(point)


def _escaped(path: str) -> str:
    """Return a path as an option of overlayfs has it, where a comma ends it and a colon ends one of several layers."""
    return path.replace("\\", "\\\\").replace(",", "\\,").replace(":", "\\:")
