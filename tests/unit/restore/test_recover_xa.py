# SPDX-License-Identifier: GPL-3.0-or-later
"""A recovery to a moment with transactions that applications have prepared, before the backup and after it."""

from __future__ import annotations

from _core.binlog import xa
from _core.mysql.connection import Session
from _core.proof.position import prepared
from shop import Shop, marked, next_second


def xa_start(session: Session, xid: str, text: str) -> None:
    session.do("XA START %s" % xid, "INSERT INTO d.orders (s) VALUES ('%s')" % text, "XA END %s" % xid, "XA PREPARE %s" % xid)


@marked
def test_transactions_of_applications_come_back_prepared_or_ended_as_they_were_at_that_moment(shop: Shop) -> None:
    login = shop.server.login
    for number in range(1, 4):
        with Session(login) as session:
            xa_start(session, "'before-%d'" % number, "before %d" % number)
    shop.back_up()
    shop.server.do("XA COMMIT 'before-1'", "XA ROLLBACK 'before-2'", "INSERT INTO d.orders (s) VALUES ('plain')")
    for number in range(1, 4):
        with Session(login) as session:
            xa_start(session, "'after-%d'" % number, "after %d" % number)
    shop.server.do("XA COMMIT 'after-1'", "XA ROLLBACK 'after-2'", "INSERT INTO d.orders (s) VALUES ('last')")
    with Session(login) as session:
        session.do("XA START 'at-once'", "INSERT INTO d.orders (s) VALUES ('at once')", "XA END 'at-once'", "XA COMMIT 'at-once' ONE PHASE")
    until = next_second()
    shop.server.do("XA COMMIT 'before-3'", "XA COMMIT 'after-3'")
    shop.archive_logs()
    datadir, _said = shop.restore(until=until)
    with shop.look(datadir) as session:
        found = prepared(session, is_mariadb=True)
        assert sorted(found) == [xa.Xid(1, b"after-3", b""), xa.Xid(1, b"before-3", b"")]
        session.do("XA COMMIT 'before-3'", "XA COMMIT 'after-3'")
        rows = sorted(str(row["s"]) for row in session.rows("SELECT s FROM d.orders"))
        assert rows == ["after 1", "after 3", "at once", "before 1", "before 3", "last", "plain"]
