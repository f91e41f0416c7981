# SPDX-License-Identifier: GPL-3.0-or-later
"""Connections to the server of this host, and their errors as sentences."""

from __future__ import annotations

import getpass
import os
from configparser import DuplicateOptionError, DuplicateSectionError
from dataclasses import dataclass, field
from typing import Any, Dict, List, Optional, Sequence, Tuple

from ..host.errors import StillpointError, UsageError

# Where distributions put the socket: Debian, Red Hat, upstream.
SOCKETS = ("/run/mysqld/mysqld.sock", "/var/lib/mysql/mysql.sock", "/tmp/mysql.sock")

# Statements that answer at once on a healthy server; a lock has its own limit.
READ_TIMEOUT = 60


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
        raise StillpointError("the Python library PyMySQL is missing on this host: install the package python3-pymysql") from error
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
                **arguments,
            )
        except self._pymysql.err.MySQLError as error:
            raise StillpointError(_why_not(error, self.user, self.where)) from None
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


def _number_and_text(error: Exception) -> Tuple[int, str]:
    number = error.args[0] if error.args and isinstance(error.args[0], int) else 0
    return number, str(error.args[-1]) if error.args else type(error).__name__


def _arguments(login: Login) -> Dict[str, Any]:
    """Return the arguments of pymysql.connect for a Login; with nothing given, the local socket as root."""
    arguments: Dict[str, Any] = {}
    from_file: Dict[str, str] = {}
    if login.config_file:
        from_file = _option_file(login.config_file)
        arguments["read_default_file"] = login.config_file
    arguments["user"] = login.login_user or from_file.get("user") or ("root" if not login.config_file else getpass.getuser())
    if login.login_password is not None:
        arguments["password"] = login.login_password
    host = login.login_host or from_file.get("host") or "localhost"
    socket = login.login_unix_socket or (from_file.get("socket") if not login.login_host else None)
    if not socket and host == "localhost" and not login.login_port:
        socket = next((path for path in SOCKETS if os.path.exists(path)), SOCKETS[0])
    if socket:
        arguments["unix_socket"] = socket
    else:
        arguments["host"] = host
        arguments["port"] = login.login_port or int(from_file.get("port") or 3306)
    tls = {"ca": login.ca_cert, "cert": login.client_cert, "key": login.client_key, "check_hostname": login.check_hostname}
    tls = {key: value for key, value in tls.items() if value is not None}
    if tls:
        arguments["ssl"] = tls
    return arguments


def _option_file(path: str) -> Dict[str, str]:
    """Return where to connect and as whom, from the [client] section of an option file.

    :raises UsageError: it can't be read, or PyMySQL would not understand it; no value is shown
    """
    from pymysql.optionfile import Parser  # pylint: disable=import-outside-toplevel

    parser = Parser()  # as strict as PyMySQL, which reads the file again
    try:
        with open(path, encoding="utf-8") as file:
            parser.read_file(file)
    except OSError as error:
        raise UsageError("the option file %s can't be read: %s" % (path, error.strerror)) from error
    except (DuplicateSectionError, DuplicateOptionError) as error:
        raise UsageError("the option file %s repeats a section or a key in line %s: have each once" % (path, error.lineno)) from None
    except Exception as error:  # configparser.Error and UnicodeDecodeError; their texts quote the line, and with it a password
        raise UsageError(
            "the option file %s is not an option file (%s): it needs a line [client] and lines of the form key = value" % (path, type(error).__name__)
        ) from None
    if not parser.has_section("client"):
        raise UsageError("the option file %s has no section [client]" % path)
    wanted = [key for key in ("user", "host", "port", "socket") if parser.has_option("client", key)]
    for key in wanted:
        if dict(parser.items("client"))[key] is None:
            raise UsageError("the option file %s names %s without a value" % (path, key))
    found = {key: parser.get("client", key) for key in wanted}
    port = found.get("port", "1")
    if not port.isdecimal() or not 0 < int(port) < 1 << 16:
        raise UsageError("the port in the option file %s is not a number from 1 to 65535" % path)
    return found


def _why_not(error: Exception, user: str, where: str) -> str:
    number, text = _number_and_text(error)
    if number in (1045, 1698):
        return "the server at %s refuses the login of %r: check the user and the password in the option file (config_file)" % (where, user)
    if number in (2002, 2003, 2006, 2013):
        return "the server at %s does not answer: is it running? (%s)" % (where, text)
    if number == 1040:
        return "the server at %s has no connection free (max_connections)" % where
    return "the server at %s refuses the connection: %s (error %d)" % (where, text, number)
