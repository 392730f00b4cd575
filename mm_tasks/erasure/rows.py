"""Work rows: read one, move one on. Each move is a change of the row and its entry, or neither.

`steps` and `register` say which move; what may follow is `protocol`'s to say. Here is also
the one row that says which store this is, and whether ours is its pseudonym key.
"""

from __future__ import annotations

import json
import secrets
from contextlib import contextmanager
from datetime import timedelta
from logging import getLogger
from typing import TYPE_CHECKING, Any, NamedTuple

import uuid_utils
from sqlalchemy import insert, select, update

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.protocol import ErasureState
from mm_tasks.erasure.audit.pseudonyms import SETTING
from mm_tasks.erasure.models import Claim, erasure_of
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.erasure.audit.pseudonyms import Pseudonyms

    Row = Mapping[str, Any]

_log = getLogger(__name__)


class Transition(NamedTuple):
    """An entry to be made, and what changes in the row besides what the entry implies."""

    kind: str
    details: Mapping[str, object]
    changes: Mapping[str, object]


def transition(
    kind: str, details: Mapping[str, object] | None = None, **changes: object
) -> Transition:
    """Return a move: its kind, what the entry says, and the columns that change."""
    return Transition(kind, details or {}, changes)


class ErasureRows:
    """The erasures of one project in one audit store."""

    def __init__(self, log: AuditLog, pseudonyms: Pseudonyms, project: str) -> None:
        """Take everything as arguments; nothing is opened here."""
        self.log = log
        self.pseudonyms = pseudonyms
        self.project = project
        self._store_id: str | None = None
        self._is_wal_left = False

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Run a transaction alone, in a store that is ours."""
        with self.log.transaction() as connection:
            store_id = self._store_id or self._checked_store(connection)
            yield connection
        self._store_id = store_id
        if self._is_wal_left:
            self.truncate_wal()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """Run a transaction that changes nothing, in a store that is ours."""
        if self._store_id is None:
            with self.transaction():
                pass
        with self.log.database.read() as connection:
            yield connection

    @property
    def store_id(self) -> str:
        """Return the id that this store was given when it was made."""
        if self._store_id is None:
            with self.transaction():
                pass
        assert self._store_id is not None
        return self._store_id

    def find(self, connection: Connection, erasure: str) -> Row | None:
        """Return a row of this project, or None."""
        column = tables.erasures.c
        query = select(tables.erasures).where(column.id == erasure, column.project == self.project)
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None else dict(row)

    def advance(
        self, connection: Connection, row: Row, moves: list[Transition], now: datetime
    ) -> Row:
        """Make the moves in order, each with its entry; return the row as it is then.

        Raises `Illegal`, and the transaction changes nothing, where one may not follow.
        """
        progress = _progress(connection, row)
        changes: dict[str, object] = {}
        for one in moves:
            progress = protocol.step(progress, one.kind, one.details, row["id"])
            audit_log.append(connection, _entry(row, one, now))
            changes |= one.changes
        changes |= {
            "state": progress.state,
            "acknowledged": progress.acknowledged,
            "attempts": progress.attempts,
        }
        self.change(connection, row["id"], **changes)
        for one in moves:
            about = {"erasure": row["id"], "entry": one.kind}
            _log.info("erasure_entry erasure=%s entry=%s", row["id"], one.kind, extra=about)
        return {**row, **changes}

    def open(self, connection: Connection, values: dict[str, Any], details: Row) -> None:
        """Insert a new row and its first entry."""
        first = transition("received", details)
        values["state"] = protocol.step(None, first.kind, first.details).state
        connection.execute(insert(tables.erasures).values(values))
        audit_log.append(connection, _entry(values, first, values["accepted_at"]))

    def change(self, connection: Connection, erasure: str, **changes: object) -> None:
        """Change columns that are no part of the protocol."""
        query = update(tables.erasures).where(tables.erasures.c.id == erasure)
        connection.execute(query.values(changes))

    def lease(self, connection: Connection, row: Row, now: datetime, lease_s: float) -> Claim:
        """Give an erasure to the caller alone, whoever had it before."""
        token = secrets.token_hex(16)
        until = stamp(now + timedelta(seconds=lease_s))
        self.change(connection, row["id"], token=token, lease_until=until)
        return Claim(row["id"], token, erasure_of(row))

    def truncate_wal(self) -> bool:
        """Remove what was wiped from SQLite's write-ahead log too; say whether it is gone.

        Never raises: what was wiped is committed.
        """
        try:
            done = self.log.database.truncate_wal()
        except AuditUnavailable:
            done = False
        self._is_wal_left = not done
        if not done:
            # Somebody reads. It goes after the next transaction, or with the last connection.
            _log.warning("wal_not_truncated")
        return done

    def _checked_store(self, connection: Connection) -> str:
        """Return the store's id; refuse a newer store, another key, and one that lost its log."""
        ours = {"epoch": self.pseudonyms.epoch, "fingerprint": self.pseudonyms.fingerprint}
        row = connection.execute(select(tables.store)).one_or_none()
        if row is None:
            if seen := max((one.size for one in self.log.outside.read()), default=0):
                rule = f"names an empty database, and the checkpoints here are of {seen} entries"
                msg = f"MM_TASKS_AUDIT_URL: {rule}; put the log back, see docs/erasure.md"
                raise ConfigurationError(msg)
            store_id = str(uuid_utils.uuid7())
            values = {"one": 1, "id": store_id, "schema_version": tables.SCHEMA_VERSION, **ours}
            connection.execute(insert(tables.store).values(values))
            return store_id
        if row.schema_version != tables.SCHEMA_VERSION:
            rule = f"its tables are of version {row.schema_version}"
            msg = f"MM_TASKS_AUDIT_URL: {rule}, this release needs {tables.SCHEMA_VERSION}"
            raise ConfigurationError(msg)
        if (row.epoch, row.fingerprint) != (ours["epoch"], ours["fingerprint"]):
            rule = f"is not the key of this audit store, whose fingerprint is {row.fingerprint}"
            msg = f"{SETTING}: {rule}; every host needs the same one"
            raise ConfigurationError(msg)
        return str(row.id)


def is_held(row: Row, now: datetime) -> bool:
    """Say whether a worker has the erasure and its lease has not run out."""
    return row["lease_until"] is not None and row["lease_until"] > stamp(now)


def unfence(connection: Connection, erasure: str, now: datetime) -> frozenset[bytes]:
    """Lift an erasure's suppressions; return the tags that no other one holds."""
    column = tables.suppressions.c
    mine = select(tables.suppressions).where(column.erasure == erasure)
    rows = connection.execute(mine).all()
    lifted = update(tables.suppressions).where(
        column.erasure == erasure, column.lifted_at.is_(None)
    )
    connection.execute(lifted.values(lifted_at=stamp(now)))
    held = select(column.tag).where(
        column.project.in_({row.project for row in rows}), column.lifted_at.is_(None)
    )
    still = set(connection.execute(held.where(column.tag.in_([row.tag for row in rows]))).scalars())
    return frozenset(bytes.fromhex(row.tag) for row in rows if row.tag not in still)


def numbers(row: Row, column: str) -> Any:
    """Return what a column holds as JSON."""
    return json.loads(row[column])


def _entry(row: Row, one: Transition, now: datetime | str) -> audit_log.StoredEntry:
    at = now if isinstance(now, str) else stamp(now)
    return audit_log.StoredEntry(
        row["id"], row["pseudonym"], row["epoch"], one.kind, one.details, at
    )


def _progress(connection: Connection, row: Row) -> ErasureState:
    """Return how far the rows say an erasure is: what a replay of its entries gives."""
    column = tables.passes.c
    query = select(column.attempt, column.n, column.round, column.outcome)
    rows = connection.execute(query.where(column.erasure == row["id"])).all()
    newest = next((one for one in rows if one.attempt == row["attempts"]), None)
    return ErasureState(
        state=row["state"],
        passes=len(json.loads(row["passes_s"])),
        acknowledged=row["acknowledged"],
        called=newest.n if newest is not None and newest.round == row["round"] else 0,
        attempts=row["attempts"],
        waiting={one.attempt: one.n for one in rows if one.outcome is None},
        wiped=row["ids"] is None,
    )
