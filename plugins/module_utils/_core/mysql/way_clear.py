# SPDX-License-Identifier: GPL-3.0-or-later
"""A server that a lock can be taken on: nothing is in its way, and what has to stand still for that does."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Callable, Iterator, Tuple

from ..host.steps import reached
from . import guard, topology
from .absent import nothing_begun
from .connection import Login, Session
from .guard import Cleared
from .locks import LockOptions
from .server import Server


@contextmanager
def way_cleared(
    login: Login, server: Server, method: str, options: LockOptions, note: Callable[[str], None]
) -> Iterator[Tuple[Session, Cleared]]:
    """Give a session on a server that nothing stands in the way of a lock on, and what the guard did for that.

    :param method: the lock's name
    :raises NotNowError: something is in the way and stays there, or the server can't be asked now
    """
    with ExitStack() as stack:
        with nothing_begun():
            session = stack.enter_context(Session(login, read_timeout=options.lock_wait_timeout + 30))
            if server.node:
                session.do("SET SESSION wsrep_sync_wait = 0")  # what is asked under the lock must not wait for the cluster
            cleared = guard.clear_the_way(session, server, method, options, note)
        reached("way clear")
        stack.enter_context(topology.set_aside(login, server, options, note))
        yield session, cleared
