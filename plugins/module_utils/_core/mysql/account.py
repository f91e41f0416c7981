# SPDX-License-Identifier: GPL-3.0-or-later
"""The database account that backups log in with: how it comes to be, with its option file, and how it goes."""

from __future__ import annotations

import os
import secrets
import stat
import string
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..host.durable import sync_directory
from ..host.errors import StillpointError, UsageError
from . import option_file, privileges
from .connection import Login, ServerError, Session
from .privileges import Extras, Grants, account_name
from .server import product

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
        lines += ["privileges on %s: %s" % (privileges.unquoted(name), ", ".join(sorted(held))) for name, held in sorted(self.grants.items())]
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


def recorded(path: str) -> Dict[str, str]:
    """Return what an option file of ours says but for the password: ``user``, and ``socket`` or ``host`` and ``port``; empty where it is not ours.

    :raises UsageError: it was changed since, and is no option file
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            ours = file.readline().rstrip("\n") == MARK
    except OSError:
        return {}
    return {name: value for name, value in option_file.read(path).items() if name != "password"} if ours else {}


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
    found_product = product(session)
    flavour, version = found_product.flavour, found_product.version
    session.do("SET SESSION sql_mode = ''", "SET SESSION sql_quote_show_create = 1")  # as SHOW GRANTS is read here
    found = _find(session, account)
    needed = privileges.least(flavour, version, extras=account.extras) if account.present else []
    wanted = privileges.as_grants(needed)
    revoke, grant = privileges.difference(found.grants, wanted)
    actions = _actions(account, found, revoke, grant)
    if account.present:
        after = Found(True, {privileges.quoted(name): held for name, held in wanted.items()}, 0o600, True, True)
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
        grants = privileges.parse_grants(privileges.show_grants(session, "SHOW GRANTS FOR %s" % account_name(account.user, account.host)))
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
            return privileges.whoami(session) == (account.user, account.host)
    except StillpointError:
        return False


def _make(session: Session, account: Account, found: Found, revoke: Sequence[Tuple[str, str]], grant: Sequence[Tuple[str, str]]) -> None:
    name = account_name(account.user, account.host)
    password = new_password() if not found.logs_in else None
    # the file is ready, whole and on the disk, before the server hears of the password, and takes its name right after
    fresh = None
    if password is not None:
        login = {"user": account.user, "password": password, **_address(session)}
        fresh = _write_aside(account.option_file, login)
    try:
        if password is not None:
            verb = "ALTER" if found.exists else "CREATE"
            _tell(
                session, "the account %s can't be made" % name, verb + " USER %s@%s IDENTIFIED BY %s", account.user, account.host, password
            )
        for where, privilege in revoke:
            _tell(session, "%s can't be taken from %s" % (privilege, name), "REVOKE %s ON %s FROM %s" % (privilege, where, name))
        for where, words in privileges.by_object(["%s ON %s" % (privilege, where) for where, privilege in grant]).items():
            _tell(session, "%s can't be granted to %s" % (", ".join(words), name), "GRANT %s ON %s TO %s" % (", ".join(words), where, name))
        if fresh is not None:
            os.replace(fresh, account.option_file)
            fresh = None
            sync_directory(os.path.dirname(account.option_file))
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
    """Keep what this database session changes out of replication, and its statements out of the general and the slow log."""
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


def _write_aside(path: str, login: Mapping[str, str]) -> str:
    """Write a new option file beside ``path`` and return its path."""
    directory = os.path.dirname(path)
    aside = "%s.%s.new" % (path, secrets.token_hex(4))
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
        return option_file.write(aside, login, MARK)
    except OSError as error:
        raise StillpointError("the option file %s can't be written: %s" % (path, error.strerror)) from error
