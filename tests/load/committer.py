#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Two sessions that commit transactions over two tables, and note each one that the server has acknowledged.

    committer.py SOCKET DIRECTORY    until DIRECTORY/stop exists, or the table orders is gone

The notes are DIRECTORY/1 and DIRECTORY/2, a key to a line. When the server goes away in the middle of a transaction, it is asked
afterwards whether that one was committed.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from typing import Any

import pymysql

TABLES = (
    "CREATE DATABASE load_d",
    "CREATE TABLE load_d.orders (writer INT, id BIGINT, s TEXT, PRIMARY KEY (writer, id))",
    "CREATE TABLE load_d.parts (writer INT, id BIGINT, n INT, PRIMARY KEY (writer, id))",
)
GONE = 1146  # no such table


def connect(socket: str) -> Any:
    return pymysql.connect(unix_socket=socket, user="root", autocommit=True)


def commit(connection: Any, writer: int, key: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("INSERT INTO load_d.orders VALUES (%s, %s, 'head')", (writer, key))
        cursor.execute("INSERT INTO load_d.parts (writer, id, n) VALUES (%s, %s, %s)", (writer, key, key % 97))
        cursor.execute("COMMIT")


def is_there(connection: Any, writer: int, key: int) -> bool:
    with connection.cursor() as cursor:
        cursor.execute("SELECT COUNT(*) FROM load_d.orders WHERE writer = %s AND id = %s", (writer, key))
        return bool(cursor.fetchone()[0])


def write(socket: str, directory: str, writer: int) -> None:
    stop = os.path.join(directory, "stop")
    connection = connect(socket)
    key = 0
    with open(os.path.join(directory, str(writer)), "w", buffering=1, encoding="ascii") as notes:
        while not os.path.exists(stop):
            key += 1
            try:
                commit(connection, writer, key)
                notes.write(f"{key}\n")
            except pymysql.err.MySQLError as error:
                if error.args[0] == GONE:
                    return
                while not os.path.exists(stop):
                    try:
                        connection = connect(socket)
                        if is_there(connection, writer, key):
                            notes.write(f"{key}\n")
                        break
                    except pymysql.err.MySQLError:
                        time.sleep(0.2)
            time.sleep(0.05)


def main() -> None:
    socket, directory = sys.argv[1:]
    os.makedirs(directory, exist_ok=True)
    threads = [threading.Thread(target=write, args=(socket, directory, writer)) for writer in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
