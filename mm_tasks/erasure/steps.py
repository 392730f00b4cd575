"""The steps of the erasure workflow, each one transaction with its entry.

A worker claims an erasure that is due, takes its next step, records it here, and releases
the claim. A claim is lost when its lease expires, so that another worker takes over from one
that died, and when new ids arrive, which the step in progress lacks. A step recorded with a
lost claim returns None and changes nothing.

Only the result of a call is always recorded, because the call was made. It counts for its
pass if the erasure still waits for it.

`commands` has the writes that people ask for. Time is an argument.
"""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import insert, or_, select, update

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, OPEN
from mm_tasks.erasure.models import Claim, Erasure, StepAttempt, VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.erasure.rows import ErasureRows, Transition, ending, is_held, transaction
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
        self, now: datetime, limit: int = _DUE_MAX, states: Collection[str] = OPEN
    ) -> list[str]:
        """Return the ids of unclaimed erasures whose next step is due, longest due first."""
        column = tables.erasures.c
        query = (
            select(column.id)
            .where(column.project == self._session.project, column.state.in_(states))
            .where(column.next_at <= now)
            .where(or_(column.lease_until.is_(None), column.lease_until <= now))
            .order_by(column.next_at, column.id)
            .limit(limit)
        )
        with self._session.read() as connection:
            return list(connection.execute(query).scalars())

    def claim(self, erasure: str, now: datetime, lease_s: float) -> Claim | None:
        """Claim an erasure; return None if it is not due, has ended or is claimed."""
        with transaction(self._session) as rows:
            row = rows.find(erasure)
            if row is None or row["state"] not in OPEN or is_held(row, now):
                return None
            return rows.lease(row, now, lease_s) if Erasure.of(row).is_due(now) else None

    def extend(self, claim: Claim, now: datetime, lease_s: float) -> bool:
        """Let the lease end `lease_s` from now; return False if the claim is lost."""
        return self._change(claim, lease_until=now + timedelta(seconds=lease_s))

    def release(self, claim: Claim, next_at: datetime | None = None) -> None:
        """Give up a claim; `next_at` postpones the next step. Does nothing if it is lost."""
        later = {} if next_at is None else {"next_at": next_at}
        self._change(claim, token=None, lease_until=None, **later)

    def mark_fenced(self, claim: Claim, now: datetime) -> Claim | None:
        """Record that the fence is up: no attempt with the subject's events is admitted."""
        return self._record(claim, now, Transition("fenced", changes={"fenced_at": now}))

    def mark_purged(self, claim: Claim, removed: Mapping[str, int], now: datetime) -> Claim | None:
        """Record that our own copies are removed, with their number by place."""
        total = Counter(claim.erasure.removed)
        total.update(removed)  # keeps a place with 0: it was searched
        details, changes = {"removed": dict(removed)}, {"removed": dict(total)}
        return self._record(claim, now, Transition("purged", details, changes))

    def mark_quiesced(self, claim: Claim, passes_s: Sequence[float], now: datetime) -> Claim | None:
        """Record that no attempt with the subject's events is in progress; plan the passes.

        `passes_s` has the time of each call of the vendor, counted from now; at least one.
        """
        changes = {
            "quiesced_at": now,
            "round": tables.erasures.c.round + 1,
            "passes_s": list(passes_s),
            "next_at": now + timedelta(seconds=passes_s[0]),
        }
        return self._record(claim, now, Transition("quiesced", {"passes": len(passes_s)}, changes))

    def intent(self, claim: Claim, now: datetime) -> StepAttempt | None:
        """Record that the vendor is about to be called; the caller then makes this attempt.

        None if the claim is lost, or no pass is due any more.
        """
        with self._held(claim) as (rows, row):
            # The result of an earlier call may have arrived since the claim.
            if row is None or not Erasure.of(row).is_due(now):
                return None
            attempt = StepAttempt(claim.id, row["acknowledged"] + 1, row["attempts"] + 1)
            details = {"pass": attempt.n, "attempt": attempt.attempt}
            rows.advance(row, [Transition("intent", details)], now)
            times = {"due_at": _due_at(row, attempt.n), "sent_at": now}
            values = {**attempt._asdict(), **times, "round": row["round"]}
            rows.connection.execute(insert(tables.passes).values(values))
            return attempt

    def result(self, attempt: StepAttempt, ack: VendorAck, now: datetime) -> Erasure:
        """Record the result of a call, and its effect if the erasure still waits for it.

        Safe to repeat: the first result of an attempt stays.
        """
        column = tables.passes.c
        is_attempt = (column.erasure == attempt.erasure, column.attempt == attempt.attempt)
        with transaction(self._session) as rows:
            row = rows.get(attempt.erasure)
            recorded = rows.connection.execute(select(column.outcome).where(*is_attempt)).scalar()
            if recorded is not None:
                return Erasure.of(row)
            values = {"status": ack.status, "outcome": ack.outcome}
            details = {"pass": attempt.n, "attempt": attempt.attempt, **values}
            transitions = [Transition("result", details), *_following(row, attempt, ack)]
            row = rows.advance(row, transitions, now)
            query = update(tables.passes).where(*is_attempt)
            rows.connection.execute(query.values(**values, answered_at=now))
            return Erasure.of(row)

    def complete(self, claim: Claim, now: datetime, aof: str = "") -> Erasure | None:
        """Record that every pass was acknowledged, and wipe the subject's ids.

        `aof` is the result of the rewrite of Redis's AOF in a fixed word; '' if none was
        started. None if the claim is lost. In mode `once` this also lifts the fence.
        """
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            transitions = [Transition("aof_rewritten", {"outcome": aof})] if aof else []
            transitions += ending("completed", {"acknowledged": row["acknowledged"]}, now)
            if row["mode"] == ONCE:
                transitions.append(Transition("lifted", {"requested_by": None}))
                rows.unfence(claim.id, now)
            erasure = Erasure.of(rows.advance(row, transitions, now))
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

    def _change(self, claim: Claim, **changes: object) -> bool:
        """Change columns of the claimed row; return False if the claim is lost."""
        with self._held(claim) as (rows, row):
            if row is not None:
                rows.change(claim.id, **changes)
            return row is not None

    def _record(self, claim: Claim, now: datetime, transition: Transition) -> Claim | None:
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            return replace(claim, erasure=Erasure.of(rows.advance(row, [transition], now)))


def _following(row: Row, attempt: StepAttempt, ack: VendorAck) -> list[Transition]:
    """Return the effect of a result; nothing if the erasure waits for another attempt."""
    if row["state"] != "submitted" or row["attempts"] != attempt.attempt:
        return []
    if ack.outcome != ACKNOWLEDGED:
        kind, next_at = ack.then, ack.next_at
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
