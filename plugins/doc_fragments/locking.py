# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # How a server is locked, and how patiently; the same family in code is plugins/module_utils/_locking.py:locking(), with the defaults of
    # plugins/module_utils/_core/mysql/locks.py:LockOptions.
    DOCUMENTATION = r"""
options:
  lock:
    description:
      - V(auto) takes the cheapest lock that is enough for the engines in use and says in C(lock.reason) why.
      - V(backup_stage) is C(BACKUP STAGE) of MariaDB 10.4 and later, which waits for no running transaction.
      - V(instance) is C(LOCK INSTANCE FOR BACKUP) of MySQL 8 and later. It keeps DDL out and lets commits and other writes go on.
      - V(ftwrl) is C(FLUSH TABLES WITH READ LOCK), on MySQL 8 and later after C(LOCK INSTANCE FOR BACKUP).
      - V(none) takes no lock. InnoDB recovers from an atomic snapshot as from a power cut; other engines may not.
      - With V(instance) and V(none) on MySQL 8 and later, the coordinates are exact where nothing was committed around the
        snapshot, which is tried three times. Where they are not, C(coordinates) is none and C(lock.between) says what is known.
    type: str
    choices: [auto, backup_stage, instance, ftwrl, none]
    default: auto
  lock_wait_timeout:
    description: Seconds for which the lock may be waited for, and other users with it, before it is given up.
    type: int
    default: 5
  long_query_threshold:
    description: Seconds after which a running statement that the lock would have to wait for counts as long.
    type: int
    default: 5
  long_query_timeout:
    description: Seconds to wait for long statements to end, with O(long_query_action=wait) and O(long_query_action=kill). Nothing is locked meanwhile.
    type: int
    default: 60
  long_query_action:
    description:
      - What to do about long statements.
      - V(wait) waits for O(long_query_timeout), then fails with nothing locked.
      - V(fail) fails at once.
      - V(kill) ends those that still run after O(long_query_timeout).
    type: str
    choices: [wait, fail, kill]
    default: wait
  stop_replica:
    description:
      - On a replica, stop the SQL threads that run for the moment of the lock, where they have no temporary table open, and
        start them again. The positions in the sources' logs are then exact with every lock, and on MySQL the lock can't be
        held up by parallel appliers.
      - That place is waited for as long as O(long_query_timeout), and no less than 30 seconds. On other servers it does nothing.
    type: bool
    default: false
  desync:
    description:
      - On a node of a Galera cluster, set C(wsrep_desync) for the moment of the lock, so that the others do not wait for it.
        On other servers it does nothing.
      - A node that is not Synced is refused in any case.
    type: bool
    default: false
"""
