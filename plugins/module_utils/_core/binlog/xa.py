# SPDX-License-Identifier: GPL-3.0-or-later
"""Prepared transactions: which are an application's, and which are the server's own between its binary log and its engine."""

from __future__ import annotations

from typing import NamedTuple, Optional

_OWN, _OWN_LENGTH = b"MySQLXid", 20  # prefix and length of the server's own, which have nothing else (MYSQL_XID_PREFIX)


class Xid(NamedTuple):
    """What a prepared transaction is called."""

    format: int
    gtrid: bytes
    bqual: bytes

    @property
    def is_internal(self) -> bool:
        """Whether the server made it, so that its binary log decides about it."""
        return self.format == 1 and self.gtrid.startswith(_OWN) and len(self.gtrid) == _OWN_LENGTH and not self.bqual

    def __str__(self) -> str:
        """Return it as XA COMMIT takes it."""
        parts = [_literal(self.gtrid)]
        if self.bqual or self.format != 1:
            parts.append(_literal(self.bqual))
        return ",".join([*parts, str(self.format)] if self.format != 1 else parts)


def parse(data: bytes) -> Optional[Xid]:
    """Return the Xid of an event of MariaDB: format, two lengths, names; None where it is cut off."""
    if len(data) < 6 or len(data) < 6 + data[4] + data[5]:
        return None
    middle = 6 + data[4]
    return Xid(int.from_bytes(data[:4], "little"), data[6:middle], data[middle : middle + data[5]])


def _literal(name: bytes) -> str:
    if name.isascii() and name.decode("ascii").isprintable() and b"'" not in name and b"\\" not in name:
        return "'%s'" % name.decode("ascii")
    return "X'%s'" % name.hex()
