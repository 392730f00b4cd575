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

from sqlalchemy import delete, insert, select, update

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.protocol import ErasureState, IllegalTransition
from mm_tasks.erasure.audit.restored import RestoredFences
from mm_tasks.erasure.models import Claim, Erasure
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping as Row
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.seals import Seals
    from mm_tasks.erasure.audit.session import AuditSession
    from mm_tasks.erasure.audit.tables import SubjectIds
_log = getLogger(__name__)

# How long the caller of `forget` has to raise the fence before the sweep does it.
FENCE_LEASE_S = 10
_LEASE_MAX_S = 86_400


class Transition(NamedTuple):
    """An entry to append, and the columns to change besides those that the entry implies.

    `fences` is what `fence` or `unfence` returned, if this entry is the reason.
    """

    kind: str
    details: Mapping[str, object] = MappingProxyType({})
    changes: Mapping[str, object] = MappingProxyType({})
    fences: int = 0


@contextmanager
def transaction(session: AuditSession) -> Iterator[ErasureRows]:
    """Run a transaction that no other one overlaps, and commit it."""
    with session.transaction() as connection:
        clock = session.log.database.now
        rows = ErasureRows(connection, session.project, clock, session.pseudonyms.seals)
        yield rows
    # After the commit: a log output that is full must not keep the lock.
    for erasure, kind in rows.entries:
        extra = {"erasure": erasure, "entry": kind}
        _log.info("erasure_entry erasure=%s entry=%s", erasure, kind, extra=extra)


class ErasureRows:
    """The rows of one project's erasures; lives as long as its transaction."""

    def __init__(
        self,
        connection: Connection,
        project: str,
        clock: Callable[[Connection], datetime],
        seals: Seals,
    ) -> None:
        """Take the connection of an open transaction, the database's clock, and the seals."""
        self.connection = connection
        self.project = project
        self._clock = clock
        self._seals = seals
        # The ids and the kinds of the entries of this transaction.
        self.entries: list[tuple[str, str]] = []

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
        """Insert the row of a new erasure, append its first entry, and return the row.

        Its ids are fenced from now on, those of a scheduled one from its start.
        """
        state = protocol.step(None, "received", details).state
        self.connection.execute(insert(tables.erasures).values(**values, state=state))
        row = self.get(values["id"])
        fences = 0 if state == protocol.SCHEDULED else self.fence(row, values["ids"])
        self._append(row, Transition("received", details, fences=fences))
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
        self.entries += [(row["id"], each.kind) for each in transitions]
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

    def fence(self, row: Row, ids: SubjectIds, after: int = 0) -> int:
        """Fence the ids of an erasure but the first `after` ones, which are fenced already.

        Returns the change of the sum of the weights, for the entry that is the reason.
        """
        fences, shared = 0, {"erasure": row["id"], "project": self.project, "since": self.now}
        for n, (kind, tag) in enumerate(ids.tags(self.project)[after:], after):
            sealed = self._seals.seal(tag, self.project, row["id"], kind)
            values = {**shared, "n": n, "kind": kind, "sealed": sealed.text}
            self.connection.execute(insert(tables.suppressions).values(values))
            fences += sealed.weight
        return fences

    def start(self, row: Row, transitions: Sequence[Transition]) -> Row:
        """Start a scheduled erasure after these transitions: its fence is in force from now on."""
        row = self.advance(row, transitions)
        fences = self.fence(row, row["ids"])
        return self.advance(row, [Transition("started", {}, {"next_at": self.now}, fences)])

    def unfence(self, erasure: str, *, restored: bool = False) -> int:
        """Lift the fence of an erasure; ids that another one fences stay fenced.

        With `restored` those that an adopted log had forgotten do not: see `audit/restored`.

        Returns the change of the sum of the weights, for the entry that is the reason. Raises
        `AuditChainBroken` for a row that was changed.
        """
        column = tables.suppressions.c
        query = select(column.project, column.erasure, column.kind, column.sealed)
        rows = self.connection.execute(query.where(column.erasure == erasure)).all()
        opened = [self._seals.open(sealed, *bound) for *bound, sealed in rows]
        if None in opened:
            msg = f"erasure {erasure}: a row of its fence was changed; see mm-tasks audit verify"
            raise AuditChainBroken(msg)
        self.connection.execute(delete(tables.suppressions).where(column.erasure == erasure))
        if restored:
            parts = (self._seals, self.get(erasure)["epoch"], self.project, self.now)
            tags = [each.tag for each in opened if each]
            RestoredFences(self.connection, *parts).leave(tags, erasure)
        return -sum(each.weight for each in opened if each)

    def _append(self, row: Row, transition: Transition) -> None:
        subject, details = (row["id"], row["pseudonym"], row["epoch"]), dict(transition.details)
        entry = audit_log.StoredEntry(*subject, transition.kind, details, stamp(self.now))
        audit_log.append(self.connection, entry, self._seals, transition.fences)

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
    kind: str, details: Mapping[str, object], now: datetime, fences: int = 0, **changes: object
) -> list[Transition]:
    """Return the transitions that end an erasure and wipe its ids."""
    ended = {"ended_at": now, "next_at": None, "token": None, "lease_until": None}
    return [
        Transition(kind, details, {**ended, **changes}, fences),
        Transition("wiped", changes={"ids": None}),
    ]
