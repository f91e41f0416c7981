# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job can say: its sections and their defaults, as values."""

from __future__ import annotations

import re
from typing import NamedTuple, Optional, Tuple

from ..lvm import sizes

ALL, CHANGED, NONE = "all", "changed", "none"

MODES = (ALL, CHANGED, NONE)
SNAPSHOT, DUMP = "snapshot", "dump"
METHODS = (SNAPSHOT, DUMP)
SOURCES = ("server", "snapshot")
LOCKS = ("auto", "backup_stage", "instance", "ftwrl", "none")
LONG_QUERY_ACTIONS = ("wait", "fail", "kill")
ARCHIVE_METHODS = ("auto", "stream", "copy")


class MysqlOptions(NamedTuple):
    """How the server is reached, and what may be done to it. There is no password here: it has its place in ``config_file``."""

    method: str = "snapshot"
    lock: str = "auto"
    login_user: Optional[str] = None
    login_host: Optional[str] = None
    login_port: Optional[int] = None
    login_unix_socket: Optional[str] = None
    config_file: Optional[str] = None
    ca_cert: Optional[str] = None
    client_cert: Optional[str] = None
    client_key: Optional[str] = None
    check_hostname: Optional[bool] = None
    connect_timeout: int = 10  # seconds, as are the three below
    lock_wait_timeout: int = 5
    long_query_threshold: int = 5
    long_query_timeout: int = 60
    long_query_action: str = "wait"
    databases: Optional[Tuple[str, ...]] = None  # of a dump, as are the two below; None: all of them
    split: bool = False
    source: str = "server"  # or snapshot: a scratch server on one
    stop_replica: bool = False
    desync: bool = False

    @property
    def is_dump(self) -> bool:
        return self.method == DUMP


class Keep(NamedTuple):
    """How many generations of each kind the retention keeps; each number counts for itself."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    yearly: int = 0


class Notify(NamedTuple):
    """Who is told how a run ended: a URL that is requested, a command that is started, a directory whose files Prometheus' node_exporter reads."""

    ping_url: Optional[str] = None
    command: Tuple[str, ...] = ()
    metrics: Optional[str] = None


class BinlogOptions(NamedTuple):
    """How the server's binary logs are archived.

    :ivar method: ``auto`` takes the stream where account and host allow it
    """

    archive: bool = True
    method: str = "auto"


class Verify(NamedTuple):
    """Whether a server is started on each backup before it is published, and which of its tables it checks then.

    :ivar schedule: when the newest backup is read again and compared with its checksums
    :ivar accept: tables whose faults don't make a backup bad, ``schema.table`` or ``schema.*``
    """

    server: bool = False
    tables: str = CHANGED
    schedule: Optional[str] = None
    accept: Tuple[str, ...] = ()


class Copy(NamedTuple):
    """Another place that each backup is sent to.

    :ivar to: as restic names a repository, without an account: rest:https://…, s3:https://…, sftp:USER@HOST:/PATH, or a directory
    :ivar secrets: the file with what opens it
    :ivar bwlimit: as rsync takes it, as the job's own
    :ivar append_only: this host may remove nothing there
    :ivar keep: which backups stay there; None: all of them, as far as this host is concerned
    """

    name: str
    to: str
    secrets: str
    bwlimit: Optional[str] = None
    append_only: bool = False
    keep: Optional[Keep] = None


class Job(NamedTuple):
    """A job that has been read and found right in itself; whether its paths exist is `paths.check_paths`' to say."""

    name: str
    repository: str
    mysql: Optional[MysqlOptions] = None
    files: Tuple[str, ...] = ()
    exclude: Tuple[str, ...] = ()
    snapshot_size: sizes.Size = sizes.Size("auto", "auto")
    keep: Optional[Keep] = None
    bwlimit: Optional[str] = None  # as rsync takes it: KiB/s, or with a suffix K, M, G
    checksum: bool = False  # compare files by content, not by size and time
    binlog: Optional[BinlogOptions] = None  # None: binary logs are not archived
    schedule: Optional[str] = None
    notify: Notify = Notify()
    verify: Verify = Verify()
    copies: Tuple[Copy, ...] = ()
    where: str = "job"  # the file it was read from, for sentences


def is_rate(text: str) -> bool:
    """Tell whether something is a rate as rsync takes it, and more than none: 5000 (KiB/s), 20M, 1.5G."""
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+)?[KMGkmg]?", text)) and float(text.rstrip("KMGkmg")) > 0
