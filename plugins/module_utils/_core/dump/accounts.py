# SPDX-License-Identifier: GPL-3.0-or-later
"""The server's accounts and roles as SQL, beside the databases.

Not the tables of the schema ``mysql``: those are the server's own, differ from version to version, and hold what belongs to one
server alone. An account that a server has already is left as it is, so that a restore neither locks anybody out nor gives
anybody more than they have.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

from ..mysql.connection import ServerError, Session
from ..mysql.privileges import account_name
from ..mysql.server import Server
from .sections import statements

FILE = "users.sql.zst"

# The servers' own, which no statement can make.
_RESERVED = ("mysql.sys", "mysql.session", "mysql.infoschema", "mariadb.sys")

_HEAD = "-- Account "
_NO_SUCH_GRANT = 1141


@dataclass(frozen=True)
class Account:
    """An account or a role, and the statements that make it: the first creates it, the others say what it may do.

    :ivar name: as the server's own tables have it; a role of MariaDB has no host
    """

    user: str
    host: str
    create: str
    grants: Tuple[str, ...]
    late: Tuple[str, ...] = ()  # what can only be said when all accounts are there

    @property
    def name(self) -> str:
        return account_name(self.user, self.host)


def read(session: Session, server: Server) -> List[Account]:
    """Return the accounts of a server, roles first."""
    session.do("SET SESSION sql_mode = ''", "SET SESSION sql_quote_show_create = 1")
    found = _mariadb(session) if server.flavour == "mariadb" else _mysql(session)
    return [account for account in found if account.user not in _RESERVED]


def _mariadb(session: Session) -> List[Account]:
    accounts = []
    for row in session.rows("SELECT User, Host, is_role, default_role FROM mysql.user ORDER BY is_role DESC, User, Host"):
        user, host = str(row["User"]), str(row["Host"])
        if user in _RESERVED:
            continue
        if user == "PUBLIC":  # everybody, from 10.11 on: it is there when it holds something
            accounts.append(Account(user, "", "", _grants(session, user)))
            continue
        if row["is_role"] == "Y":
            accounts.append(Account(user, "", "CREATE ROLE IF NOT EXISTS %s" % _quoted(user), _grants(session, _quoted(user))))
            continue
        name = account_name(user, host)
        late = ["SET DEFAULT ROLE %s FOR %s" % (_quoted(str(row["default_role"])), name)] if row["default_role"] else []
        accounts.append(Account(user, host, _created(session, name), _grants(session, name), tuple(late)))
    return accounts


def _mysql(session: Session) -> List[Account]:
    try:
        session.do("SET SESSION print_identified_with_as_hex = 1")  # an authentication string may hold any byte
    except ServerError:
        pass  # before 8.0.17
    accounts = []
    for row in session.rows("SELECT User, Host FROM mysql.user ORDER BY account_locked = 'Y' AND authentication_string = '' DESC, User, Host"):
        user, host = str(row["User"]), str(row["Host"])
        if user in _RESERVED:
            continue
        name = account_name(user, host)
        create = _created(session, name)
        late = []
        match = re.search(r" DEFAULT ROLE ((?:`(?:[^`]|``)*`@`(?:[^`]|``)*`,?)+)", create)
        if match:
            create = create[: match.start()] + create[match.end() :]
            late.append("SET DEFAULT ROLE %s TO %s" % (match.group(1), name))
        accounts.append(Account(user, host, create, _grants(session, name), tuple(late)))
    return accounts


def _created(session: Session, name: str) -> str:
    text = str(next(iter(session.rows("SHOW CREATE USER %s" % name)[0].values())))
    return re.sub(r"^CREATE USER ", "CREATE USER IF NOT EXISTS ", text)


def _grants(session: Session, name: str) -> Tuple[str, ...]:
    try:
        rows = session.rows("SHOW GRANTS FOR %s" % name)
    except ServerError as error:
        if error.number == _NO_SUCH_GRANT:
            return ()
        raise
    # MariaDB repeats the password in GRANT USAGE; it is in CREATE USER
    texts = [re.sub(r" IDENTIFIED (?:BY PASSWORD|VIA) .*?(?= REQUIRE | WITH |$)", "", str(next(iter(row.values())))) for row in rows]
    return tuple(text for text in texts if not text.startswith("SET DEFAULT ROLE"))


def _quoted(name: str) -> str:
    return "`%s`" % name.replace("`", "``")


def text(accounts: Sequence[Account]) -> str:
    """Return the accounts as SQL that a person, or `parse`, can read."""
    lines = ["-- Accounts and roles. To be loaded after the databases: privileges on a table need the table.\n"]
    for what in ("create", "grants", "late"):
        for account in accounts:
            statements = [each for each in ((account.create,) if what == "create" else getattr(account, what)) if each]
            if statements:
                lines.append("%s%s\n" % (_HEAD, _heading(account.name)))
                lines += ["%s;\n" % statement for statement in statements]
    return "\n".join(lines)


def parse(sql: str) -> Dict[str, List[str]]:
    """Return the statements for each account, by its name as `text` writes it, in the order in which they may be run."""
    found: Dict[str, List[str]] = {}
    for part in re.split(r"^%s" % _HEAD, sql, flags=re.MULTILINE)[1:]:
        name, _newline, body = part.partition("\n")
        found.setdefault(name, []).extend(each.decode().strip().rstrip(";") for each in statements(body.encode()))
    return found


def existing(session: Session) -> List[str]:
    """Return the accounts that a server has, by name as `text` writes it."""
    return [_heading(account_name(str(row["User"]), str(row["Host"]))) for row in session.rows("SELECT User, Host FROM mysql.user")]


def _heading(name: str) -> str:
    return name.replace("\n", " ")
