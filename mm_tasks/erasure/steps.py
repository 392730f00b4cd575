"""The steps of the erasure workflow, each one transaction with its entry.

A worker claims an erasure that is due, takes its next step, records it here, and releases
the claim. A claim is lost when its lease expires, so that another worker takes over from one
that died, and when new ids arrive, which the step in progress lacks. A step recorded with a
lost claim returns None and changes nothing.

Only the result of a call is always recorded, because the call was made. It counts for its
pass if the erasure still waits for it.

`commands` has the writes that people ask for. All instants are of the database's clock.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import and_, insert, or_, select, update

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, OPEN, SCHEDULED
from mm_tasks.erasure.models import WAITS, Claim, Erasure, StepAttempt, VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.erasure.rows import (
    FENCE_LEASE_S,
    ErasureRows,
    Transition,
    ending,
    transaction,
)
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping as Row

    from mm_tasks.erasure.audit.session import AuditSession

_DUE_MAX = 100


class ErasureSteps:
    """The steps of the erasures of one project."""

    def __init__(self, session: AuditSession) -> None:
        """Take the store; nothing is opened here."""
        self._session = session

    def due(
        self, lease_s: float, limit: int = _DUE_MAX, states: Collection[str] = OPEN
    ) -> list[str]:
        """Return the ids of unclaimed erasures whose next step is due, longest due first.

        As `Erasure.is_due` and `claim` tell; `lease_s` as for `claim`.
        """
        column = tables.erasures.c
        with self._session.read() as connection:
            now = self._session.log.database.now(connection)
            too_late = (
                and_(column.state == state, column.next_at > now + wait)
                for state, wait in WAITS.items()
            )
            lease, until = column.lease_until, now + timedelta(seconds=max(lease_s, FENCE_LEASE_S))
            query = (
                select(column.id)
                .where(column.project == self._session.project, column.state.in_(states))
                .where(column.next_at.is_not(None), or_(column.next_at <= now, *too_late))
                .where(or_(lease.is_(None), lease <= now, lease > until))
                .order_by(column.next_at, column.id)
                .limit(limit)
            )
            return list(connection.execute(query).scalars())

    def claim(self, erasure: str, lease_s: float) -> Claim | None:
        """Claim an erasure for `lease_s`; return None if it is not due, has ended or is claimed.

        All workers use the same `lease_s`: a lease that ends later is of a clock set back since.
        """
        with transaction(self._session) as rows:
            row = rows.find(erasure)
            if row is None or row["state"] not in OPEN:
                return None
            is_held = rows.is_held(row, max(lease_s, FENCE_LEASE_S))
            return None if is_held or not rows.value(row).is_due else rows.lease(row, lease_s)

    def extend(self, claim: Claim, lease_s: float) -> bool:
        """Let the lease end `lease_s` from now; return False if the claim is lost."""
        with self._held(claim) as (rows, row):
            if row is not None:
                rows.change(claim.id, lease_until=rows.in_(lease_s))
            return row is not None

    def release(self, claim: Claim, wait_s: float | None = None) -> None:
        """Give up a claim; `wait_s` postpones the next step. Does nothing if it is lost."""
        with self._held(claim) as (rows, row):
            if row is not None:
                later = {} if wait_s is None else {"next_at": rows.in_(wait_s)}
                rows.change(claim.id, token=None, lease_until=None, **later)

    def start(self, claim: Claim) -> Claim | None:
        """Start a scheduled erasure whose time has come, unless a request just started it."""
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            started = rows.start(row, []) if row["state"] == SCHEDULED else row
            return replace(claim, erasure=rows.value(started))

    def mark_fenced(self, claim: Claim) -> Claim | None:
        """Record that the fence is up: no attempt with the subject's events is admitted."""
        with self._held(claim) as (rows, row):
            fenced = Transition("fenced", changes={"fenced_at": rows.now})
            return _advanced(claim, rows, row, fenced)

    def mark_purged(self, claim: Claim, removed: Mapping[str, int]) -> Claim | None:
        """Record that our own copies are removed, with their number by place."""
        total = Counter(claim.erasure.removed)
        total.update(removed)  # keeps a place with 0: it was searched
        details, changes = {"removed": dict(removed)}, {"removed": dict(total)}
        with self._held(claim) as (rows, row):
            return _advanced(claim, rows, row, Transition("purged", details, changes))

    def mark_quiesced(self, claim: Claim, passes_s: Sequence[float]) -> Claim | None:
        """Record that no attempt with the subject's events is in progress; plan the passes.

        `passes_s` has the time of each call of the vendor, counted from now; at least one.
        """
        with self._held(claim) as (rows, row):
            changes = {
                "quiesced_at": rows.now,
                "round": tables.erasures.c.round + 1,
                "passes_s": list(passes_s),
                "next_at": rows.in_(passes_s[0]),
            }
            quiesced = Transition("quiesced", {"passes": len(passes_s)}, changes)
            return _advanced(claim, rows, row, quiesced)

    def intent(self, claim: Claim) -> StepAttempt | None:
        """Record that the vendor is about to be called; the caller then makes this attempt.

        None if the claim is lost, or no pass is due any more.
        """
        with self._held(claim) as (rows, row):
            # The result of an earlier call may have arrived since the claim.
            if row is None or not rows.value(row).is_due:
                return None
            attempt = StepAttempt(claim.id, row["acknowledged"] + 1, row["attempts"] + 1)
            details = {"pass": attempt.n, "attempt": attempt.attempt}
            rows.advance(row, [Transition("intent", details)])
            times = {"due_at": _due_at(row, attempt.n), "sent_at": rows.now}
            values = {**attempt._asdict(), **times, "round": row["round"]}
            rows.connection.execute(insert(tables.passes).values(values))
            return attempt

    def result(self, attempt: StepAttempt, ack: VendorAck) -> Erasure:
        """Record the result of a call, and its effect if the erasure still waits for it.

        Safe to repeat: the first result of an attempt stays.
        """
        column = tables.passes.c
        is_attempt = (column.erasure == attempt.erasure, column.attempt == attempt.attempt)
        with transaction(self._session) as rows:
            row = rows.get(attempt.erasure)
            recorded = rows.connection.execute(select(column.outcome).where(*is_attempt)).scalar()
            if recorded is not None:
                return rows.value(row)
            values = {"status": ack.status, "outcome": ack.outcome}
            details = {"pass": attempt.n, "attempt": attempt.attempt, **values}
            transitions = [Transition("result", details), *_following(rows, row, attempt, ack)]
            row = rows.advance(row, transitions)
            query = update(tables.passes).where(*is_attempt)
            rows.connection.execute(query.values(**values, answered_at=rows.now))
            return rows.value(row)

    def complete(self, claim: Claim, aof: str = "") -> Erasure | None:
        """Record that every pass was acknowledged, and wipe the subject's ids.

        `aof` is the result of the rewrite of Redis's AOF in a fixed word; '' if none was
        started. None if the claim is lost. In mode `once` this also lifts the fence.
        """
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            transitions = [Transition("aof_rewritten", {"outcome": aof})] if aof else []
            transitions += ending("completed", {"acknowledged": row["acknowledged"]}, rows.now)
            if row["mode"] == ONCE:
                fences = rows.unfence(claim.id, restored=True)
                transitions.append(Transition("lifted", {"requested_by": None}, fences=fences))
            erasure = rows.value(rows.advance(row, transitions))
        self._session.truncate_wal()
        return erasure

    @contextmanager
    def _held(self, claim: Claim) -> Iterator[tuple[ErasureRows, Row | None]]:
        """Run a transaction on the claimed row, None if the claim is lost.

        A claim whose lease expired is valid until another worker takes over.
        """
        with transaction(self._session) as rows:
            row = rows.find(claim.id)
            yield rows, row if row is not None and row["token"] == claim.token else None


def _advanced(
    claim: Claim, rows: ErasureRows, row: Row | None, transition: Transition
) -> Claim | None:
    """Make a transition of the claimed row; return None if the claim is lost."""
    if row is None:
        return None
    return replace(claim, erasure=rows.value(rows.advance(row, [transition])))


def _following(
    rows: ErasureRows, row: Row, attempt: StepAttempt, ack: VendorAck
) -> list[Transition]:
    """Return the effect of a result; nothing if the erasure waits for another attempt."""
    if row["state"] != "submitted" or row["attempts"] != attempt.attempt:
        return []
    if ack.outcome != ACKNOWLEDGED:
        kind = ack.then
        next_at = None if ack.wait_s is None else min(rows.in_(ack.wait_s), rows.now + WAITS[kind])
    elif attempt.n < len(row["passes_s"]):
        kind, next_at = "settling", _due_at(row, attempt.n + 1)
    else:
        # The erasure stays submitted and due; its next step is `complete`.
        return []
    details = {"next_at": None if next_at is None else stamp(next_at)}
    return [Transition(kind, details, {"next_at": next_at})]


def _due_at(row: Row, n: int) -> datetime:
    """Return the planned time of a pass of this round."""
    quiesced_at: datetime = row["quiesced_at"]
    return quiesced_at + timedelta(seconds=row["passes_s"][n - 1])
