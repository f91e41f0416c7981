# SPDX-License-Identifier: GPL-3.0-or-later
"""The format of binary logs, as far as it is read here: that of MySQL's manual ("Binary Log Event Header", internals) and of MariaDB's
knowledge base ("1-Binlog Events", "GTID_EVENT").

Four bytes of magic, then events of a 19-byte header and a body, with a CRC-32 at the end of each where the server's binlog_checksum has it.
"""

from __future__ import annotations

import struct
from typing import Optional

from .gtid import Gtid, MariaGtid, MysqlGtid

MAGIC = b"\xfebin"
MAGIC_ENCRYPTED = b"\xfdbin"  # MySQL's; MariaDB's logs begin in clear

HEADER = struct.Struct("<IBIIIH")  # time, type, server id, size, end position, flags
HEADER_SIZE = 19
IN_USE = 0x1  # LOG_EVENT_BINLOG_IN_USE_F, of a log that is open, or was when its server crashed
IGNORABLE = 0x80  # LOG_EVENT_IGNORABLE_F

QUERY, STOP, ROTATE, FORMAT, XID, EXECUTE_LOAD_QUERY, INCIDENT = 2, 3, 4, 15, 16, 18, 26
MYSQL_GTID, MYSQL_ANONYMOUS, MYSQL_PREVIOUS_GTIDS, XA_PREPARE, MYSQL_PAYLOAD, MYSQL_GTID_TAGGED = 33, 34, 35, 38, 40, 42
MARIA_GTID, MARIA_GTID_LIST, MARIA_START_ENCRYPTION, MARIA_QUERY_COMPRESSED = 162, 163, 164, 165

# Those that change or remove rows: of both versions, and compressed ones of MariaDB; and the one that names their table.
TABLE_MAP, CHANGES_ROWS = 19, (24, 25, 31, 32, 39, 167, 168, 170, 171)

BEGINS = (MYSQL_GTID, MYSQL_ANONYMOUS, MYSQL_GTID_TAGGED, MARIA_GTID)
QUERIES = (QUERY, MARIA_QUERY_COMPRESSED)
# flags of MariaDB's GTID event; a standalone one has no COMMIT after it
STANDALONE, GROUP_COMMIT, TRANSACTIONAL, DDL, XA_PREPARED, XA_COMPLETED = 0x1, 0x2, 0x4, 0x20, 0x40, 0x80

_MARIA_GTID = struct.Struct("<QIB")  # number, domain, flags


def has_checksums(body: bytes) -> bool:
    """Tell from the body of a FORMAT event whether the events of its log end with a CRC-32."""
    return len(body) >= 62 and body[-5] == 1


def gtid_of(kind: int, server: int, body: bytes) -> Optional[Gtid]:
    """Return the GTID that an event of BEGINS gives; None where it has none, or one with a tag."""
    if kind == MARIA_GTID:
        sequence, domain, _flags = _MARIA_GTID.unpack_from(body)
        return MariaGtid(domain, server, sequence)
    if kind == MYSQL_GTID:
        return MysqlGtid(uuid_text(body[1:17]), struct.unpack_from("<q", body, 17)[0])
    return None


def gtid_flags(body: bytes) -> int:
    """Return the flags of MariaDB's GTID event."""
    return int(_MARIA_GTID.unpack_from(body)[2])


def gtid_xid(body: bytes) -> bytes:
    """Return what MariaDB's GTID event of an application's transaction (XA_PREPARED, XA_COMPLETED) says of its name, from its format on."""
    return body[_MARIA_GTID.size + (8 if gtid_flags(body) & GROUP_COMMIT else 0) :]


def uuid_text(raw: bytes) -> str:
    text = raw.hex()
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))
