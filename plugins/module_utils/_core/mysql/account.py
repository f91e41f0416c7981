# SPDX-License-Identifier: GPL-3.0-or-later
"""The database account that backups log in with: the least that it needs, what it lacks, and how it comes to be."""

from __future__ import annotations

import os
import re
import secrets
import stat
import string
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Dict, FrozenSet, Iterable, List, Optional, Sequence, Set, Tuple

from ..errors import StillpointError, UsageError
from .connection import Login, ServerError, Session
from .server import Version, flavour_and_version

GLOBAL = "*.*"

# What each privilege is for:
#   RELOAD                             BACKUP STAGE, FLUSH TABLES WITH READ LOCK, FLUSH ENGINE LOGS
#   PROCESS                            other users' statements, for the guard; MySQL's list of tablespaces, INNODB_DATAFILES
#   BINLOG MONITOR, REPLICATION CLIENT the binary log's coordinates
#   SLAVE MONITOR                      a replica's position in its source's log; 10.5.2 to 10.5.8 asked for REPLICATION SLAVE
#                                      ADMIN instead (SHOW GRANTS spells it so: MDEV-34053)
#   BACKUP_ADMIN                       LOCK INSTANCE FOR BACKUP, performance_schema.log_status
#   REPLICATION SLAVE                  the binary logs as a stream, for binlog.archive alone
#   CONNECTION ADMIN, SUPER            KILL QUERY, for long_query_action = kill alone
#   REPLICATION SLAVE ADMIN, SUPER     STOP and START SLAVE, for stop_replica alone
#   SUPER, SYSTEM_VARIABLES_ADMIN      wsrep_desync, for desync alone; MariaDB still asks for SUPER (measured on 10.11)
# No privilege on anybody's tables: which of them are not transactional is read from the data directory. A dump reads all of them:
#   SELECT, SHOW VIEW, TRIGGER, EVENT  rows, and the definitions of views, triggers and events
#   SHOW_ROUTINE, SHOW CREATE ROUTINE  routines, where SELECT on the table that holds them is not enough
#   LOCK TABLES                        tables that are not transactional


@dataclass(frozen=True)
class Extras:
    """What a job may ask for beyond a backup that only looks and locks.

    :ivar kill: the guard may end statements (``long_query_action: kill``)
    :ivar stop_replica: the SQL threads of a replica are stopped for the snapshot
    :ivar desync: a Galera node is desynced for it
    :ivar dump: every table is read as SQL (``method: dump``)
    :ivar archive: binary logs are sent to it (``binlog.archive``)
    """

    kill: bool = False
    stop_replica: bool = False
    desync: bool = False
    dump: bool = False
    archive: bool = False


@dataclass(frozen=True)
class _Needs:
    """What an account needs on a server from a version on: for a backup, and besides for each of the extras but dumps.

    :ivar unlocked: for a backup without a lock: where a replica stands, and what MySQL 8 tells while commits go on
    """

    version: Version
    backup: Tuple[str, ...]
    extras: Dict[str, str]
    unlocked: Tuple[str, ...]


_SUPER = {"kill": "SUPER", "stop_replica": "SUPER", "desync": "SUPER", "archive": "REPLICATION SLAVE"}
_MARIADB = {**_SUPER, "kill": "CONNECTION ADMIN", "stop_replica": "REPLICATION SLAVE ADMIN"}
_MYSQL = {**_SUPER, "kill": "CONNECTION_ADMIN", "stop_replica": "REPLICATION_SLAVE_ADMIN", "desync": "SYSTEM_VARIABLES_ADMIN"}

_OLD = ("REPLICATION CLIENT",)
_NEW = ("PROCESS", "REPLICATION CLIENT", "BACKUP_ADMIN", "SELECT ON performance_schema.log_status")

_NEEDED: Dict[str, List[_Needs]] = {
    "mariadb": [
        _Needs((5, 1), ("RELOAD", "PROCESS", *_OLD), _SUPER, _OLD),
        _Needs((10, 5, 2), ("RELOAD", "PROCESS", "BINLOG MONITOR", "REPLICATION SLAVE ADMIN"), _MARIADB, ("REPLICATION SLAVE ADMIN",)),
        _Needs((10, 5, 9), ("RELOAD", "PROCESS", "BINLOG MONITOR", "SLAVE MONITOR"), _MARIADB, ("SLAVE MONITOR",)),
    ],
    "mysql": [
        _Needs((5, 1), ("RELOAD", "PROCESS", *_OLD), _SUPER, _OLD),
        _Needs((8, 0), ("RELOAD", *_NEW), _MYSQL, _NEW),
    ],
}

_READ_ALL = ("SELECT", "SHOW VIEW", "TRIGGER", "EVENT", "LOCK TABLES")
_TO_DUMP: Dict[str, List[Tuple[Version, Tuple[str, ...]]]] = {
    "mariadb": [((5, 1), _READ_ALL), ((11, 3), (*_READ_ALL, "SHOW CREATE ROUTINE"))],
    "mysql": [((5, 1), _READ_ALL), ((8, 0, 20), (*_READ_ALL, "SHOW_ROUTINE"))],
}

_SAME = {
    "BINLOG MONITOR": ("REPLICATION CLIENT",),
    "SLAVE MONITOR": ("REPLICA MONITOR",),
    "REPLICATION SLAVE ADMIN": ("REPLICATION REPLICA ADMIN",),
}
# What SUPER was split into (MDEV-21743, MySQL 8.0); MariaDB 11.0.1 took these out of it
_PARTS_OF_SUPER = (
    "BINLOG MONITOR",
    "REPLICATION CLIENT",
    "SLAVE MONITOR",
    "REPLICATION SLAVE ADMIN",
    "CONNECTION ADMIN",
    "CONNECTION_ADMIN",
    "REPLICATION_SLAVE_ADMIN",
    "SYSTEM_VARIABLES_ADMIN",
)
_SUPER_WITHOUT_PARTS = (11, 0, 1)

_NAME = r"(?:\*|`(?:[^`]|``)+`|\w+)"
_GRANT = re.compile(r"GRANT (?P<privileges>.+?) ON (?:TABLE )?(?P<object>%s\.%s) TO " % (_NAME, _NAME), re.IGNORECASE)

MARK = "# Written by stillpoint.backup for its own account: a change made here is lost."

# Letters, digits and signs that neither an option file nor a shell reads anything into
_ALPHABET = string.ascii_letters + string.digits + "_.+="
_LENGTH = 40

# Error numbers whose meaning is not to be had from the server's own text, which may quote the statement and the password in it
_MAY_NOT = "the account that logged in may not do this: log in as one that holds ALL PRIVILEGES"
_REFUSALS = {
    1044: _MAY_NOT,
    1142: _MAY_NOT,
    1227: _MAY_NOT,
    1410: _MAY_NOT,
    1290: "the server runs with super_read_only or without its grant tables: lift that for a moment, each server keeps its own account",
    1396: "the server refuses the name of the account",
    1819: "the server's password policy refuses a random password of 40 letters, digits and signs",
    1836: "the server is read-only for administrators too: lift that for a moment, each server keeps its own account",
}

Grants = Dict[str, FrozenSet[str]]  # object as SHOW GRANTS writes it -> privileges on it


def privileges(flavour: str, version: Version, lock: str = "auto", extras: Extras = Extras()) -> List[str]:
    """Return the least privileges of an account that backups log in with; those on one table as ``SELECT ON schema.table``.

    :param lock: the lock that is taken; for ``none`` the server is only asked where its files are, and where a replica stands
    """
    rows = [row for row in _NEEDED["mariadb" if flavour == "mariadb" else "mysql"] if version >= row.version]
    if not rows:
        raise StillpointError("%s %s is older than anything that this knows the privileges of" % (flavour, ".".join(map(str, version))))
    if lock == "none" and extras == Extras():
        return list(rows[-1].unlocked)
    asked = [privilege for name, privilege in rows[-1].extras.items() if getattr(extras, name)]
    if extras.dump:
        asked += [needed for first, needed in _TO_DUMP["mariadb" if flavour == "mariadb" else "mysql"] if version >= first][-1]
    return list(dict.fromkeys([*rows[-1].backup, *asked]))


def parse_grants(lines: Iterable[str]) -> Grants:
    """Return what the lines of SHOW GRANTS grant; roles, proxies and USAGE left out."""
    grants: Dict[str, Set[str]] = {}
    for line in lines:
        match = _GRANT.match(line)
        if not match:
            continue
        found = {_spelled(privilege) for privilege in re.split(r",(?![^(]*\))", match.group("privileges"))}
        if re.search(r"\bWITH\b.*\bGRANT OPTION\b", line[match.end() :]):
            found.add("GRANT OPTION")
        grants.setdefault(match.group("object"), set()).update(found - {"USAGE"})
    return {name: frozenset(held) for name, held in grants.items() if held}


def missing(grants_text: str, needed: Iterable[str], *, flavour: str, version: Version) -> List[str]:
    """Return those of the needed privileges that the text of SHOW GRANTS (one grant to a line) does not hold."""
    held = {_plain(name): each for name, each in parse_grants(grants_text.splitlines()).items()}
    super_counts = flavour != "mariadb" or version < _SUPER_WITHOUT_PARTS

    def covered(privilege: str) -> bool:
        word, where = _split(privilege)
        for place in (GLOBAL, where, where.split(".")[0] + ".*"):
            have = held.get(place, frozenset())
            if have & {word, "ALL PRIVILEGES", "ALL", *_SAME.get(word, ())}:
                return True
            if "SUPER" in have and super_counts and word in _PARTS_OF_SUPER:
                return True
        return False

    return [privilege for privilege in needed if not covered(privilege)]


def missing_privileges(session: Session, flavour: str, version: Version, lock: str = "auto", extras: Extras = Extras()) -> List[str]:
    """Return the privileges that a backup with this lock needs and the account of this session does not hold."""
    return missing(
        "\n".join(_show_grants(session, "SHOW GRANTS")), privileges(flavour, version, lock, extras), flavour=flavour, version=version
    )


def whoami(session: Session) -> Tuple[str, str]:
    """Return user and host of the account that the server took a session's login for."""
    user, _at, host = str(session.value("SELECT CURRENT_USER()")).rpartition("@")
    return user, host


def grant_sql(user: str, host: str, needed: Sequence[str]) -> str:
    """Return the statements that grant privileges to an account, as a person would type them."""
    return " ".join(
        "GRANT %s ON %s TO %s;" % (", ".join(words), where, account_name(user, host)) for where, words in _by_object(needed).items()
    )


def account_name(user: str, host: str) -> str:
    """Return 'user'@'host' as SQL."""
    return "@".join("'%s'" % part.replace("\\", "\\\\").replace("'", "''") for part in (user, host))


# --- the account and its option file


@dataclass(frozen=True)
class Account:
    """The account as it shall be."""

    user: str = "stillpoint"
    host: str = "localhost"
    option_file: str = "/etc/stillpoint/my.cnf"
    extras: Extras = Extras()
    present: bool = True


@dataclass(frozen=True)
class Found:
    """What there is of an account: on the server, and in its option file."""

    exists: bool
    grants: Grants
    file_mode: Optional[int]  # None: there is no file
    file_ours: bool  # it carries our mark
    logs_in: bool  # with the file as it is

    def lines(self, account: Account) -> List[str]:
        """Return it as lines for a diff; nothing secret."""
        if not self.exists and self.file_mode is None:
            return []
        lines = ["account %s" % account_name(account.user, account.host)] if self.exists else []
        lines += ["privileges on %s: %s" % (_plain(name), ", ".join(sorted(held))) for name, held in sorted(self.grants.items())]
        if self.file_mode is not None:
            lines.append(
                "option file %s, mode %04o, %s" % (account.option_file, self.file_mode, "logs in" if self.logs_in else "does not log in")
            )
        return lines


@dataclass(frozen=True)
class Ensured:
    """What `ensure` did, or would do."""

    changed: bool
    actions: Tuple[str, ...]
    before: Tuple[str, ...]
    after: Tuple[str, ...]
    privileges: Tuple[str, ...]


def ensure(session: Session, account: Account, *, check: bool = False) -> Ensured:
    """Make the account and its option file what they shall be, and return what that took.

    The password is made here, goes to the server and into the file, and is seen nowhere else. It is replaced when, and only
    when, the file does not log in. The account belongs to this one server, as the file does: it is kept out of the binary
    log, so that a replica keeps its own account and password, and gets no transaction that its source does not have.

    :param session: logged in as an administrator
    :param check: change nothing
    :raises UsageError: the option file is somebody else's
    :raises StillpointError: the server refuses
    """
    flavour, version = flavour_and_version(
        str(session.value("SELECT @@GLOBAL.version")), str(session.value("SELECT @@GLOBAL.version_comment"))
    )
    session.do("SET SESSION sql_mode = ''", "SET SESSION sql_quote_show_create = 1")  # as SHOW GRANTS is read here
    found = _find(session, account)
    needed = privileges(flavour, version, extras=account.extras) if account.present else []
    wanted = _wanted(needed)
    revoke, grant = _difference(found.grants, wanted)
    actions = _actions(account, found, revoke, grant)
    if account.present:
        after = Found(True, {_quoted(name): held for name, held in wanted.items()}, 0o600, True, True)
    else:
        after = Found(False, {}, None if found.file_ours else found.file_mode, False, False)
    ensured = Ensured(
        bool(actions),
        tuple(actions),
        tuple(found.lines(account)),
        tuple(after.lines(account)) if actions else tuple(found.lines(account)),
        tuple(needed),
    )
    if check or not actions:
        return ensured
    _keep_to_this_server(session)
    if account.present:
        _make(session, account, found, revoke, grant)
    else:
        if found.exists:
            _tell(
                session,
                "the account %s can't be dropped" % account_name(account.user, account.host),
                "DROP USER %s@%s",
                account.user,
                account.host,
            )
        if found.file_ours:
            os.unlink(account.option_file)
    return ensured


def _actions(account: Account, found: Found, revoke: Sequence[Tuple[str, str]], grant: Sequence[Tuple[str, str]]) -> List[str]:
    """Return in words what has to be done."""
    name = account_name(account.user, account.host)
    if not account.present:
        return (["drop account %s" % name] if found.exists else []) + (
            ["remove option file %s" % account.option_file] if found.file_ours else []
        )
    if found.file_mode is not None and not found.file_ours and not found.logs_in:
        raise UsageError(
            "the option file %s was not written by this module and does not log in as %s: move it away, or name another option_file"
            % (account.option_file, name)
        )
    actions = [] if found.exists else ["create account %s" % name]
    actions += ["revoke %s on %s" % (privilege, where) for where, privilege in revoke]
    actions += ["grant %s on %s" % (privilege, where) for where, privilege in grant]
    if not found.logs_in:
        actions += (["set a new password"] if found.exists else []) + ["write option file %s" % account.option_file]
    elif found.file_mode is not None and found.file_mode & 0o077:
        actions.append("set mode 0600 on option file %s" % account.option_file)
    return actions


def _find(session: Session, account: Account) -> Found:
    statement = "SELECT 1 FROM mysql.user WHERE User = %s AND Host = %s"
    exists = bool(_tell(session, "the server's accounts can't be read", statement, account.user, account.host))
    grants: Grants = {}
    if exists:
        grants = parse_grants(_show_grants(session, "SHOW GRANTS FOR %s" % account_name(account.user, account.host)))
    mode: Optional[int] = None
    ours = False
    try:
        with open(account.option_file, encoding="utf-8", errors="replace") as file:
            info = os.fstat(file.fileno())
            ours = file.readline().rstrip("\n") == MARK
        if not stat.S_ISREG(info.st_mode):
            raise UsageError("the option file %s is not a file" % account.option_file)
        mode = stat.S_IMODE(info.st_mode)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise UsageError("the option file %s can't be read: %s" % (account.option_file, error.strerror)) from error
    return Found(exists, grants, mode, ours, exists and mode is not None and _logs_in(account))


def _logs_in(account: Account) -> bool:
    """Tell whether the option file logs in, and as this account."""
    try:
        with Session(Login(config_file=account.option_file)) as session:
            return whoami(session) == (account.user, account.host)
    except StillpointError:
        return False


def _make(session: Session, account: Account, found: Found, revoke: Sequence[Tuple[str, str]], grant: Sequence[Tuple[str, str]]) -> None:
    name = account_name(account.user, account.host)
    password = new_password() if not found.logs_in else None
    # the file is ready, whole and on the disk, before the server hears of the password, and takes its name right after
    fresh = _write_aside(account.option_file, option_file(account.user, password, _address(session))) if password is not None else None
    try:
        if password is not None:
            verb = "ALTER" if found.exists else "CREATE"
            _tell(
                session, "the account %s can't be made" % name, verb + " USER %s@%s IDENTIFIED BY %s", account.user, account.host, password
            )
        for where, privilege in revoke:
            _tell(session, "%s can't be taken from %s" % (privilege, name), "REVOKE %s ON %s FROM %s" % (privilege, where, name))
        for where, words in _by_object(["%s ON %s" % (privilege, where) for where, privilege in grant]).items():
            _tell(session, "%s can't be granted to %s" % (", ".join(words), name), "GRANT %s ON %s TO %s" % (", ".join(words), where, name))
        if fresh is not None:
            os.replace(fresh, account.option_file)
            fresh = None
            _sync_directory(account.option_file)
    finally:
        if fresh is not None:
            with suppress(OSError):
                os.unlink(fresh)
    os.chmod(account.option_file, 0o600)
    if not _logs_in(account):
        raise StillpointError(
            "the account %s was made, and yet the option file %s does not log in: is it locked, or does another account match first?"
            % (name, account.option_file)
        )


def _keep_to_this_server(session: Session) -> None:
    """Keep what this session changes out of replication, and its statements out of the general and the slow log."""
    for condition, statement in (
        ("SELECT @@GLOBAL.log_bin", "SET SESSION sql_log_bin = 0"),
        ("SELECT @@GLOBAL.general_log", "SET SESSION sql_log_off = 1"),
        ("SELECT @@GLOBAL.slow_query_log", "SET SESSION long_query_time = 31536000"),
        ("SELECT @@GLOBAL.wsrep_on", "SET SESSION wsrep_on = 0"),  # each node of a cluster has its own account
    ):
        try:
            applies = session.value(condition)
        except ServerError as error:
            if error.number != 1193:  # a variable that this server does not have
                raise
            continue
        if str(applies) in ("1", "ON"):
            _tell(session, "%s is not possible" % statement, statement)


def _tell(session: Session, trouble: str, statement: str, *arguments: str) -> List[Dict[str, Any]]:
    """Return a statement's rows; what the server says against it is left out of the error, as it may quote the password."""
    try:
        return session.rows(statement, arguments)
    except ServerError as error:
        raise StillpointError(
            "%s: %s (error %d)" % (trouble, _REFUSALS.get(error.number, "the server refuses the statement"), error.number)
        ) from None


def _address(session: Session) -> Dict[str, str]:
    """Return how a client of this host reaches the server: by its socket, which needs no name resolution and no TLS."""
    socket = session.value("SELECT @@GLOBAL.socket")
    if socket:
        datadir = str(session.value("SELECT @@GLOBAL.datadir"))
        return {"socket": os.path.join(datadir, str(socket))}
    return {"host": "localhost", "port": str(session.value("SELECT @@GLOBAL.port"))}


def new_password() -> str:
    """Return a random password that the usual policies accept: letters of both cases, digits and signs."""
    while True:
        password = "".join(secrets.choice(_ALPHABET) for _each in range(_LENGTH))
        if all(set(password) & set(kind) for kind in (string.ascii_lowercase, string.ascii_uppercase, string.digits, "_.+=")):
            return password


def option_file(user: str, password: str, address: Dict[str, str]) -> str:
    """Return the text of an option file for a login."""
    lines = [MARK, "[client]", "user=%s" % user, "password=%s" % password]
    return "\n".join([*lines, *("%s=%s" % item for item in address.items())]) + "\n"


def _write_aside(path: str, text: str) -> str:
    """Write a new file beside ``path``, readable by us alone and on the disk, and return its path."""
    directory = os.path.dirname(path)
    aside = "%s.%s.new" % (path, secrets.token_hex(4))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StillpointError("the option file %s can't be written: %s" % (path, error.strerror)) from error
    return aside


def _sync_directory(path: str) -> None:
    descriptor = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- grants


def _show_grants(session: Session, statement: str) -> List[str]:
    return [str(next(iter(row.values()))) for row in session.rows(statement)]


def _spelled(privilege: str) -> str:
    """Return a privilege in capitals, the columns that it may name as they are."""
    word, bracket, columns = privilege.strip().partition("(")
    return word.upper() + bracket + columns


def _plain(name: str) -> str:
    """Return schema.table without quotes."""
    return name.replace("`", "")


def _quoted(name: str) -> str:
    """Return schema.table as SHOW GRANTS writes it."""
    return name if name == GLOBAL else ".".join("`%s`" % part for part in name.split("."))


def _split(privilege: str) -> Tuple[str, str]:
    """Return privilege and object of ``SELECT ON schema.table``; those without an object are global."""
    word, _on, where = privilege.partition(" ON ")
    return word, where or GLOBAL


def _by_object(needed: Iterable[str]) -> Dict[str, List[str]]:
    by_object: Dict[str, List[str]] = {}
    for privilege in needed:
        word, where = _split(privilege)
        by_object.setdefault(where, []).append(word)
    return by_object


def _wanted(needed: Iterable[str]) -> Grants:
    return {where: frozenset(words) for where, words in _by_object(needed).items()}


def _difference(held: Grants, wanted: Grants) -> Tuple[List[Tuple[str, str]], List[Tuple[str, str]]]:
    """Return what to revoke and what to grant, as (object, privilege), so that exactly what is wanted is held."""
    aliases = {alias: word for word, others in _SAME.items() for alias in others}
    plain = {
        _plain(name): {word if word in wanted.get(_plain(name), ()) else aliases.get(word, word) for word in words}
        for name, words in held.items()
    }
    revoke = [
        (name, word)
        for name, words in held.items()
        for word in sorted(words)
        if not {word, aliases.get(word, word)} & wanted.get(_plain(name), frozenset())
    ]
    lost_all = {_plain(name) for name, word in revoke if word in ("ALL", "ALL PRIVILEGES")}
    grant = [
        (name, word) for name, words in wanted.items() for word in sorted(words) if name in lost_all or word not in plain.get(name, set())
    ]
    return revoke, grant
