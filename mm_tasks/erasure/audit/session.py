"""Transactions on an audit store whose identity was checked.

The table `mm_store` has one row: the store's id, the version of its tables, and the
fingerprint of the pseudonym key. The first transaction of a process compares it with the
process's own and upgrades an older store. It raises `ConfigurationError` if the store is of a later
release, belongs to another key, or is empty although checkpoints of its log exist.
"""

from __future__ import annotations

from contextlib import contextmanager
from logging import getLogger
from typing import TYPE_CHECKING

from sqlalchemy import insert, select

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.pseudonyms import SETTING
from mm_tasks.erasure.audit.upgrade import upgrade
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.events import ids
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms

_log = getLogger(__name__)


class AuditSession:
    """The audit store as one process uses it for one project."""

    def __init__(self, log: AuditLog, pseudonyms: Pseudonyms, project: str) -> None:
        """Take everything as arguments; nothing is opened here."""
        self.log = log
        self.pseudonyms = pseudonyms
        self.project = project
        self._store_id: str | None = None
        self._is_wal_left = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run a transaction that no other one overlaps, and commit it."""
        with self.log.transaction() as connection:
            store_id = self._store_id or self._checked_id(connection)
            yield connection
        self._store_id = store_id
        if self._is_wal_left:
            self.truncate_wal()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a transaction that changes nothing."""
        _ = self.store_id  # checked once, in a transaction of its own
        with self.log.database.read() as connection:
            yield connection

    @property
    def store_id(self) -> str:
        """Return the id of the store, which is created if it is missing."""
        if self._store_id is None:
            with self.transaction():
                pass
        assert self._store_id is not None
        return self._store_id

    def truncate_wal(self) -> bool:
        """Truncate SQLite's write-ahead log, which holds wiped ids; return whether it worked.

        Never raises, because the wipe is committed. After a failure (another process reads)
        each later transaction tries again.
        """
        try:
            done = self.log.database.truncate_wal()
        except AuditUnavailable:
            done = False
        self._is_wal_left = not done
        if not done:
            _log.warning("wal_not_truncated")
        return done

    def _checked_id(self, connection: Connection) -> str:
        """Return the store's id, or raise `ConfigurationError`: see the module."""
        key = (self.pseudonyms.epoch, self.pseudonyms.fingerprint)
        row = connection.execute(select(tables.store)).one_or_none()
        if row is None:
            if size := max((checkpoint.size for checkpoint in self.log.outside.read()), default=0):
                rule = f"names an empty database, and the checkpoints here are of {size} entries"
                msg = f"MM_TASKS_AUDIT_URL: {rule}; put the log back, see docs/erasure.md"
                raise ConfigurationError(msg)
            store_id = ids.uuid7()
            new = (1, store_id, tables.SCHEMA_VERSION, *key)
            connection.execute(insert(tables.store).values(new))
            return store_id
        if (row.epoch, row.fingerprint) != key:
            rule = f"is not the key of this audit store, whose fingerprint is {row.fingerprint}"
            msg = f"{SETTING}: {rule}; every host needs the same one"
            raise ConfigurationError(msg)
        if row.schema_version == 1:
            upgrade(connection, self.pseudonyms, stamp(self.log.database.now(connection)))
        elif row.schema_version != tables.SCHEMA_VERSION:
            rule = f"its tables are of version {row.schema_version}"
            msg = f"MM_TASKS_AUDIT_URL: {rule}, this release needs {tables.SCHEMA_VERSION}"
            raise ConfigurationError(msg)
        return str(row.id)
