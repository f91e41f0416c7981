# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to the server of this host, and their errors as sentences."""

from __future__ import annotations

import getpass
import os
import sys
from dataclasses import dataclass, field
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from ..host.errors import StillpointError
from . import option_file

# Where distributions put the socket: Debian, Red Hat, upstream.
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")

# Statements that answer at once on a healthy server; a lock has its own limit.
READ_TIMEOUT = 60

_OFF = ("0", "OFF", "FALSE", "NO")

# What a session of ours depends on is said right after the login: what the server's configuration, its init_connect or a limit of the
# account says of it is meant for other programs, and would end a session that holds a lock, or hide rows. A session that may say nothing
# for long is ended when this process is. The last two exist in one flavour each: MySQL reads no M!, MariaDB passes over 50700 and more.
LONGEST_IDLE = 31536000  # seconds; no server takes more
_AS_NEEDED = (
    "SET SESSION wait_timeout = %d, SESSION interactive_timeout = %d, SESSION net_read_timeout = 600, SESSION net_write_timeout = 600, "
    "SESSION sql_select_limit = 18446744073709551615, SESSION sql_big_selects = 1/*!50503 , SESSION lock_wait_timeout = %d */"
    "/*M!100101 , SESSION max_statement_time = 0 *//*!50708 , SESSION max_execution_time = 0 */" % (LONGEST_IDLE, LONGEST_IDLE, READ_TIMEOUT - 10)
)


@dataclass(frozen=True)
class Login:
    """How to reach the server; names and meanings as in every MySQL module of Ansible."""

    login_user: Optional[str] = None
    login_password: Optional[str] = field(default=None, repr=False)
    login_host: Optional[str] = None
    login_port: Optional[int] = None
    login_unix_socket: Optional[str] = None
    config_file: Optional[str] = None
    ca_cert: Optional[str] = None
    client_cert: Optional[str] = None
    client_key: Optional[str] = None
    check_hostname: Optional[bool] = None
    connect_timeout: int = 10

    @classmethod
    def of(cls, options: Any) -> "Login":
        """Return the Login in the attributes of an object that has some or all of them."""
        return cls(**{name: getattr(options, name) for name in cls.__dataclass_fields__ if hasattr(options, name)})


def pymysql() -> Any:
    """Return the module pymysql.

    :raises StillpointError: it is not installed
    """
    try:
        import pymysql as module  # pylint: disable=import-outside-toplevel
        import pymysql.cursors  # noqa: F401  pylint: disable=import-outside-toplevel,unused-import
    except ImportError as error:
        raise StillpointError("the Python library PyMySQL is missing for %s: install the package python3-pymysql" % sys.executable) from error
    return module


class Session:
    """A connection in autocommit. The server drops what it locked when it is closed, or when this process dies: at once, unless a
    statement runs in it, which the server goes on with to its end.

    :ivar unanswered: a statement was sent whose answer did not come; it may be running still
    """

    def __init__(self, login: Login, *, read_timeout: int = READ_TIMEOUT) -> None:
        """Connect.

        :raises UsageError: the option file is missing or malformed
        :raises StillpointError: the server refuses or does not answer
        """
        self._pymysql = pymysql()
        self._read_timeout = read_timeout
        self.login = login
        self._connect()

    def _connect(self) -> None:
        arguments = _arguments(self.login)
        self.unanswered = False
        self.where = arguments.get("unix_socket") or "%s:%d" % (arguments.get("host"), arguments.get("port") or 3306)
        self.user = arguments.get("user") or ""
        try:
            self._connection = self._pymysql.connect(
                autocommit=True,
                connect_timeout=self.login.connect_timeout,
                read_timeout=self._read_timeout,
                write_timeout=READ_TIMEOUT,
                charset="utf8mb4",
                init_command=_AS_NEEDED,
                **arguments,
            )
        except self._pymysql.err.MySQLError as error:
            raise _unavailable(error, self.user, self.where, arguments.get("unix_socket")) from None
        except (OSError, ValueError, RuntimeError) as error:
            raise StillpointError("the server at %s can't be reached: %s" % (self.where, error)) from None

    def __enter__(self) -> "Session":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    @property
    def id(self) -> int:
        return int(self._connection.thread_id())

    def rows(self, statement: str, arguments: Sequence[Any] = ()) -> List[Dict[str, Any]]:
        """Return the rows of a statement, by column name.

        :raises ServerError: the server's own error, or a lost connection
        """
        self.unanswered = True
        try:
            with self._connection.cursor(self._pymysql.cursors.DictCursor) as cursor:
                cursor.execute(statement, arguments or None)
                rows = list(cursor.fetchall() or ())
            self.unanswered = False
            return rows
        except self._pymysql.err.MySQLError as error:
            failure = ServerError(statement, *_number_and_text(error))
            self.unanswered = failure.connection_lost
            raise failure from None
        except OSError as error:
            raise ServerError(statement, 2013, str(error)) from None

    def do(self, *statements: str) -> None:
        for statement in statements:
            self.rows(statement)

    def value(self, statement: str) -> Any:
        """Return the only value of the only row; None without a row."""
        rows = self.rows(statement)
        return next(iter(rows[0].values())) if rows else None

    def renew(self) -> None:
        """Connect anew, where the connection may be lost; what was set in the session is gone.

        :raises StillpointError: as at first
        """
        self.close()
        self._connect()

    def answer_within(self, seconds: float) -> None:
        """Give up on statements from now on whose answer does not come in so many seconds."""
        self._connection._read_timeout = seconds  # PyMySQL looks at it anew for each answer, and has no other way to change it

    def close(self) -> None:
        """Close at once, whatever state the session is in. The farewell is sent and not waited for: without it, the server
        notes an aborted connection in its error log."""
        try:
            self._connection.close()
        except (self._pymysql.err.MySQLError, OSError):
            pass  # closed already, or the server is gone


class ServerError(StillpointError):
    """A statement failed.

    :ivar number: the server's or the client's error number (1205: lock wait timeout; 2006, 2013: connection lost)
    """

    def __init__(self, statement: str, number: int, text: str) -> None:
        super().__init__("the server refused %s: %s (error %d)" % (statement, text, number))
        self.statement = statement
        self.number = number
        self.text = text

    @property
    def connection_lost(self) -> bool:
        return self.number in (0, 1053, 1927, 2006, 2013, 2014, 4031)

    @property
    def node_not_ready(self) -> bool:
        """Whether it is a Galera node that starts, is cut off from its cluster, or was told to reject queries."""
        return self.number == 1047 and "WSREP" in self.text


class Unavailable(StillpointError):
    """No login was to be had now.

    :ivar reason: why it will be; None where nobody answers, and only the host can tell (`absent.expected`)
    :ivar socket: that was tried; None where it was a port
    """

    def __init__(self, message: str, reason: Optional[str], socket: Optional[str]) -> None:
        super().__init__(message)
        self.reason = reason
        self.socket = socket


# What a server says to a login that it would take at another time.
_PASSING = {
    1040: "has no connection free (max_connections)",
    1041: "is out of memory",
    1053: "is being shut down",
    1135: "can't make another thread",
    1203: "has no connection free for this account (max_user_connections)",
    1226: "has no connection or statement left for this account (its limits)",
    3032: "is offline for maintenance (offline_mode)",
    3168: "is not available yet",
}
_NO_SUCH_HOST = "[Errno -2]"  # EAI_NONAME of getaddrinfo(3); the others pass


def _number_and_text(error: Exception) -> Tuple[int, str]:
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    return number, str(error.args[-1]) if error.args else type(error).__name__


def client_options(login: Login) -> Dict[str, str]:
    """Return what a client has to be told to log in, by the names of option files: those of the login's own file, and over them what it
    says itself. With nothing given, the local socket as root.

    :raises UsageError: the option file can't be read, or a client would refuse it
    """
    options = option_file.read(login.config_file) if login.config_file else {}
    options.setdefault("user", "root" if not login.config_file else getpass.getuser())
    given = {
        "user": login.login_user,
        "password": login.login_password,
        "host": login.login_host,
        "port": login.login_port,
        "socket": login.login_unix_socket,
        "ssl-ca": login.ca_cert,
        "ssl-cert": login.client_cert,
        "ssl-key": login.client_key,
    }
    if login.login_host and options.get("protocol", "").lower() != "tcp":
        options.pop("socket", None)
    options.update({name: str(value) for name, value in given.items() if value is not None and (value or name == "password")})
    _choose_way(options, tcp=login.login_host is not None and not login.login_unix_socket or login.login_port is not None)
    if login.check_hostname is not None:
        options["ssl-verify-server-cert"] = str(int(login.check_hostname))
    return options


def _choose_way(options: Dict[str, str], *, tcp: bool) -> None:
    """Have either a socket or a host and a port in the options, as a client of this host would choose.

    :param tcp: the login itself names a host or a port
    """
    host, protocol = options.get("host") or "localhost", options.get("protocol", "").lower()
    if protocol == "tcp" or not options.get("socket") and (host != "localhost" or tcp):
        options.pop("socket", None)
        options.update(host=host, port=options.get("port") or "3306", protocol="tcp")
        return
    options["socket"] = options.get("socket") or next((path for path in SOCKETS if os.path.exists(path)), SOCKETS[0])
    for name in ("host", "port", "protocol"):
        options.pop(name, None)


def _arguments(login: Login) -> Dict[str, Any]:
    """Return the arguments of pymysql.connect for a Login."""
    options = client_options(login)
    arguments: Dict[str, Any] = {"user": options["user"]}
    if "password" in options:  # as bytes, which PyMySQL sends as they are; a text it would send as Latin-1
        arguments["password"] = options["password"].encode("utf-8", "surrogateescape")
    if "socket" in options:
        arguments["unix_socket"] = options["socket"]
    else:
        arguments.update(host=options["host"], port=int(options["port"]))
    tls = _tls(options, login)
    if tls:
        arguments["ssl"] = tls
    return arguments


def _tls(options: Mapping[str, str], login: Login) -> Dict[str, Any]:
    """Return what PyMySQL calls ``ssl``. As with the clients, the name in the server's certificate is compared where the options ask for it;
    a certificate authority that the login itself names asks for it too."""
    mode = options.get("ssl-mode", "").upper()
    if options.get("ssl", "").upper() in _OFF or mode == "DISABLED":
        return {}
    tls: Dict[str, Any] = {name: options["ssl-" + name] for name in ("ca", "capath", "cert", "key", "cipher") if options.get("ssl-" + name)}
    if tls or options.get("ssl") or mode in ("REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY"):
        asked = options.get("ssl-verify-server-cert")
        named = asked.upper() not in _OFF if asked is not None else mode == "VERIFY_IDENTITY"
        tls["check_hostname"] = named or asked is None and bool(login.ca_cert)
    return tls


def _unavailable(error: Exception, user: str, where: str, socket: Optional[str]) -> StillpointError:
    """Return the refusal or the silence of a server as an error."""
    number, text = _number_and_text(error)
    if number in (1045, 1698):
        return StillpointError("the server at %s refuses the login of %r: check the user and the password in the option file (config_file)" % (where, user))
    if number in _PASSING:
        return Unavailable("the server at %s %s" % (where, _PASSING[number]), "error %d" % number, socket)
    if number in (2006, 2013):  # somebody listens there
        return Unavailable("the server at %s ends the connection before the login" % where, "it starts, stops or is out of connections", socket)
    if number in (2002, 2003):
        silent = "the server at %s does not answer: is it running? (%s)" % (where, text)
        return StillpointError(silent) if _NO_SUCH_HOST in text else Unavailable(silent, None, socket)
    return StillpointError("the server at %s refuses the connection: %s (error %d)" % (where, text, number))
