"""The rows of one project's erasures within one transaction.

Each transition changes a row and appends its entry to the log, or does neither. `steps` and
`commands` choose the transition; `audit/protocol` decides whether it is legal.
"""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from logging import getLogger
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import insert, select, update

from mm_tasks.buffer import records
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.protocol import ErasureState, IllegalTransition
from mm_tasks.erasure.models import Claim, Erasure
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping as Row
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.session import AuditSession
_log = getLogger(__name__)

# How long the caller of `forget` has to raise the fence before the sweep does it.
FENCE_LEASE_S = 10
_LEASE_MAX_S = 86_400


class Transition(NamedTuple):
    """An entry to append, and the columns to change besides those that the entry implies."""

    kind: str
    details: Mapping[str, object] = MappingProxyType({})
    changes: Mapping[str, object] = MappingProxyType({})


@contextmanager
def transaction(session: AuditSession) -> Iterator[ErasureRows]:
    """Run a transaction that no other one overlaps, and commit it."""
    with session.transaction() as connection:
        rows = ErasureRows(connection, session.project, session.log.database.now)
        yield rows
    # After the commit: a log output that is full must not keep the lock.
    for fields in rows.entries:
        _log.info("erasure_entry erasure=%s entry=%s", *fields.values(), extra=fields)


class ErasureRows:
    """The rows of one project's erasures; lives as long as its transaction."""

    def __init__(
        self, connection: Connection, project: str, clock: Callable[[Connection], datetime]
    ) -> None:
        """Take the connection of an open transaction, and the database's clock."""
        self.connection = connection
        self.project = project
        self._clock = clock
        # The ids and the kinds of the entries of this transaction.
        self.entries: list[dict[str, str]] = []

    @cached_property
    def now(self) -> datetime:
        """Return the time of this transaction, by the database: every instant it writes."""
        return self._clock(self.connection)

    def in_(self, seconds: float) -> datetime:
        """Return the time so many seconds after `now`."""
        return self.now + timedelta(seconds=seconds)

    def find(self, erasure: str) -> Row | None:
        """Return the row of an erasure, or None."""
        return tables.find_erasure(self.connection, self.project, erasure)

    def get(self, erasure: str, name: str = "erasure") -> Row:
        """Return the row of an erasure; raise `IllegalTransition`, which calls it `name`."""
        row = self.find(erasure)
        if row is None:
            msg = f"there is no such {name}"
            raise IllegalTransition(msg)
        return row

    def insert(self, values: Mapping[str, Any], details: Mapping[str, object]) -> Row:
        """Insert the row of a new erasure, append its first entry, and return the row."""
        state = protocol.step(None, "received", details).state
        self.connection.execute(insert(tables.erasures).values(**values, state=state))
        row = self.get(values["id"])
        self._append(row, Transition("received", details))
        return row

    def advance(self, row: Row, transitions: Sequence[Transition]) -> Row:
        """Make the transitions in order, each with its entry; return the new row.

        Raises `IllegalTransition` if one is not legal.
        """
        state = self._state(row, transitions)
        changes: dict[str, object] = {}
        for transition in transitions:
            state = protocol.step(state, transition.kind, transition.details, row["id"])
            self._append(row, transition)
            changes |= transition.changes
        counts = {"acknowledged": state.acknowledged, "attempts": state.attempts}
        self.change(row["id"], **changes, **counts, state=state.state)
        self.entries += [{"erasure": row["id"], "entry": each.kind} for each in transitions]
        return self.get(row["id"])

    def change(self, erasure: str, **changes: object) -> None:
        """Change columns without an entry."""
        query = update(tables.erasures).where(tables.erasures.c.id == erasure)
        self.connection.execute(query.values(changes))

    def value(self, row: Row) -> Erasure:
        """Return a row as a value of this time."""
        return Erasure.of(row, self.now)

    def is_held(self, row: Row, lease_s: float = _LEASE_MAX_S) -> bool:
        """Return whether a worker has the erasure, and its lease has not expired.

        A lease that ends more than `lease_s` from now counts as expired: the clock was set back.
        """
        until = row["lease_until"]
        return until is not None and self.now < until <= self.in_(lease_s)

    def lease(self, row: Row, lease_s: float) -> Claim:
        """Lease an erasure to the caller; an earlier claim is lost."""
        token = secrets.token_hex(16)
        self.change(row["id"], token=token, lease_until=self.in_(lease_s))
        return Claim(token, self.value(row))

    def fence(self, row: Row, kind: str, ids: Iterable[str]) -> None:
        """Fence ids of this kind on behalf of an erasure; those of a scheduled one from its start.

        Their tags are stored in each case: a second request finds the erasure by them.
        """
        shared = {"erasure": row["id"], "project": self.project, "kind": kind, "since": self.now}
        lifted_at = self.now if row["state"] == protocol.SCHEDULED else None
        for id_ in ids:
            tag = records.tag(self.project, kind, id_).hex()
            values = {**shared, "tag": tag, "lifted_at": lifted_at}
            self.connection.execute(insert(tables.suppressions).values(values))

    def start(self, row: Row, transitions: Sequence[Transition]) -> Row:
        """Start a scheduled erasure after these transitions: its fence is in force from now on."""
        started = Transition("started", changes={"next_at": self.now})
        query = update(tables.suppressions).where(tables.suppressions.c.erasure == row["id"])
        self.connection.execute(query.values(since=self.now, lifted_at=None))
        return self.advance(row, [*transitions, started])

    def unfence(self, erasure: str) -> None:
        """Lift the fence of an erasure; ids that another one fences stay fenced."""
        column = tables.suppressions.c
        query = update(tables.suppressions).where(column.erasure == erasure)
        query = query.where(column.lifted_at.is_(None))
        self.connection.execute(query.values(lifted_at=self.now))

    def _append(self, row: Row, transition: Transition) -> None:
        subject, details = (row["id"], row["pseudonym"], row["epoch"]), dict(transition.details)
        entry = audit_log.StoredEntry(*subject, transition.kind, details, stamp(self.now))
        audit_log.append(self.connection, entry)

    def _state(self, row: Row, transitions: Sequence[Transition]) -> ErasureState:
        """Return the state that a replay of the erasure's entries must give.

        Of its attempts it has those that the transitions need: the newest one, and each that
        gets a result. There may be thousands.
        """
        column = tables.passes.c
        needed = {row["attempts"]}
        needed |= {one.details["attempt"] for one in transitions if one.kind == "result"}
        query = select(column.attempt, column.n, column.round, column.outcome)
        query = query.where(column.erasure == row["id"], column.attempt.in_(needed))
        attempts = self.connection.execute(query).all()
        current = (row["attempts"], row["round"])
        return ErasureState(
            state=row["state"],
            passes=len(row["passes_s"]),
            acknowledged=row["acknowledged"],
            called=next((a.n for a in attempts if (a.attempt, a.round) == current), 0),
            attempts=row["attempts"],
            waiting={a.attempt: a.n for a in attempts if a.outcome is None},
            wiped=row["ids"] is None,
        )


def ending(
    kind: str, details: Mapping[str, object], now: datetime, **changes: object
) -> list[Transition]:
    """Return the transitions that end an erasure and wipe its ids."""
    ended = {"ended_at": now, "next_at": None, "token": None, "lease_until": None}
    return [
        Transition(kind, details, {**ended, **changes}),
        Transition("wiped", changes={"ids": None}),
    ]
