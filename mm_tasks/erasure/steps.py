"""The ledger: every step of an erasure's workflow, each one transaction with its entry.

A worker claims an erasure that is due, takes its next step, notes it here, and gives it
back. A claim runs out, so that a worker which died is taken over; and it is taken away when
new ids arrive, since what was fenced or purged meanwhile lacks them. A step noted without
a claim that still holds returns None and changes nothing: whoever holds it goes on.

Only an answer is always taken: the call was made, whoever made it. It counts if the
erasure waits for it, and is in the log in any case.

What people ask (`forget`, `cancel`, `show`) is in `register`. Time is an argument.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import TYPE_CHECKING

from sqlalchemy import insert, or_, select, update

from mm_tasks.erasure.audit import protocol, tables
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, OPEN
from mm_tasks.erasure.models import Claim, Erasure, StepAttempt, VendorAck, erasure_of
from mm_tasks.erasure.request import ONCE
from mm_tasks.erasure.rows import ErasureRows, Transition, is_held, numbers, transition, unfence
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.rows import Row

_DUE_MAX = 100


class ErasureSteps:
    """The steps of the erasures of one project."""

    def __init__(self, work: ErasureRows) -> None:
        """Take the work rows; nothing is opened here."""
        self._work = work

    def due(self, now: datetime, limit: int = _DUE_MAX) -> list[str]:
        """Return ids of erasures whose next step is due and nobody is at, longest due first."""
        column = tables.erasures.c
        at = stamp(now)
        query = (
            select(column.id)
            .where(column.project == self._work.project, column.state.in_(OPEN))
            .where(column.next_at <= at)
            .where(or_(column.lease_until.is_(None), column.lease_until <= at))
            .order_by(column.next_at, column.id)
            .limit(limit)
        )
        with self._work.read() as connection:
            return list(connection.execute(query).scalars())

    def claim(self, erasure: str, now: datetime, lease_s: float) -> Claim | None:
        """Take an erasure for a limited time; None when it is not due, ended or taken."""
        with self._work.transaction() as connection:
            row = self._work.find(connection, erasure)
            if row is None or row["state"] not in OPEN or is_held(row, now):
                return None
            if row["next_at"] is None or row["next_at"] > stamp(now):
                return None
            return self._work.lease(connection, row, now, lease_s)

    def extend(self, claim: Claim, now: datetime, lease_s: float) -> bool:
        """Keep a claim for longer, from now; False when it is lost."""
        with self._work.transaction() as connection:
            if self._held(connection, claim) is None:
                return False
            until = stamp(now + timedelta(seconds=lease_s))
            self._work.change(connection, claim.id, lease_until=until)
            return True

    def release(self, claim: Claim, next_at: datetime | None = None) -> None:
        """Give an erasure back, to be looked at again at `next_at` if that is given.

        A claim that was lost meanwhile is left to its new holder.
        """
        with self._work.transaction() as connection:
            if self._held(connection, claim) is None:
                return
            later = {} if next_at is None else {"next_at": stamp(next_at)}
            self._work.change(connection, claim.id, token=None, lease_until=None, **later)

    def mark_fenced(self, claim: Claim, now: datetime) -> Claim | None:
        """Note that the fence is up: no attempt with the subject's events is admitted."""
        return self._noted(claim, now, transition("fenced", fenced_at=stamp(now)))

    def mark_purged(self, claim: Claim, removed: Mapping[str, int], now: datetime) -> Claim | None:
        """Note that our own copies are gone, and how many there were in which place."""
        before = claim.erasure.removed
        # Places where nothing was found are kept: that is an answer too.
        total = {
            place: before.get(place, 0) + removed.get(place, 0) for place in {**before, **removed}
        }
        return self._noted(
            claim, now, transition("purged", {"removed": dict(removed)}, removed=json.dumps(total))
        )

    def mark_quiesced(self, claim: Claim, passes_s: Sequence[float], now: datetime) -> Claim | None:
        """Note that no attempt with the subject's events is on its way, and plan the passes.

        `passes_s` says when the vendor is called, counted from now; at least one.
        """
        with self._work.transaction() as connection:
            row = self._held(connection, claim)
            if row is None:
                return None
            changes = {
                "quiesced_at": stamp(now),
                "round": row["round"] + 1,
                "passes_s": json.dumps(list(passes_s)),
                "next_at": stamp(now + timedelta(seconds=passes_s[0])),
            }
            noted = Transition("quiesced", {"passes": len(passes_s)}, changes)
            return _claim(claim, self._work.advance(connection, row, [noted], now))

    def intent(self, claim: Claim, now: datetime) -> StepAttempt | None:
        """Note that the vendor is about to be called; call only with what this returns.

        None where the claim is lost, or no pass is due any more.
        """
        with self._work.transaction() as connection:
            row = self._held(connection, claim)
            # An answer to an earlier call may have come since the claim, late.
            if row is None or row["next_at"] is None or row["next_at"] > stamp(now):
                return None
            n, attempt = row["acknowledged"] + 1, row["attempts"] + 1
            noted = transition("intent", {"pass": n, "attempt": attempt})
            self._work.advance(connection, row, [noted], now)
            values = {
                "erasure": claim.id,
                "attempt": attempt,
                "round": row["round"],
                "n": n,
                "due_at": stamp(_due_at(row, n)),
                "sent_at": stamp(now),
            }
            connection.execute(insert(tables.passes).values(values))
            return StepAttempt(claim.id, n, attempt)

    def result(self, attempt: StepAttempt, answer: VendorAck, now: datetime) -> Erasure:
        """Note how a call ended, and what follows if the erasure still waits for it.

        Safe to repeat: the first answer to an attempt stays.
        """
        with self._work.transaction() as connection:
            row = self._work.find(connection, attempt.erasure)
            if row is None:
                msg = "there is no such erasure"
                raise protocol.IllegalTransition(msg)
            if _is_answered(connection, attempt):
                return erasure_of(row)
            moves = [_result(attempt, answer), *_following(row, attempt, answer)]
            row = self._work.advance(connection, row, moves, now)
            column = tables.passes.c
            query = update(tables.passes).where(
                column.erasure == attempt.erasure, column.attempt == attempt.attempt
            )
            values = {
                "answered_at": stamp(now),
                "status": answer.status,
                "outcome": answer.outcome,
            }
            connection.execute(query.values(values))
            return erasure_of(row)

    def complete(self, claim: Claim, now: datetime, aof: str = "") -> Erasure | None:
        """Note that every pass was acknowledged, and wipe the subject's ids.

        `aof` is what came of the request to rewrite Redis's AOF, in a fixed word; '' if nobody
        asked. None where the claim is lost.
        In mode `once` the fence ends as well; see `Register.fences`.
        """
        with self._work.transaction() as connection:
            row = self._held(connection, claim)
            if row is None:
                return None
            ended = {"ended_at": stamp(now), "next_at": None, "token": None, "lease_until": None}
            moves = [transition("aof_rewritten", {"outcome": aof})] if aof else []
            moves += [
                Transition("completed", {"acknowledged": row["acknowledged"]}, ended),
                transition("wiped", ids=None),
            ]
            if row["mode"] == ONCE:
                moves.append(transition("lifted", {"requested_by": None}))
                unfence(connection, claim.id, now)
            row = self._work.advance(connection, row, moves, now)
        self._work.truncate_wal()
        return erasure_of(row)

    def _held(self, connection: Connection, claim: Claim) -> Row | None:
        """Return the row if it is still the caller's: late is good, taken over is not."""
        row = self._work.find(connection, claim.id)
        return row if row is not None and row["token"] == claim.token else None

    def _noted(self, claim: Claim, now: datetime, noted: Transition) -> Claim | None:
        with self._work.transaction() as connection:
            row = self._held(connection, claim)
            if row is None:
                return None
            return _claim(claim, self._work.advance(connection, row, [noted], now))


def _claim(claim: Claim, row: Row) -> Claim:
    return Claim(claim.id, claim.token, erasure_of(row))


def _is_answered(connection: Connection, attempt: StepAttempt) -> bool:
    column = tables.passes.c
    query = select(column.outcome).where(
        column.erasure == attempt.erasure, column.attempt == attempt.attempt
    )
    return connection.execute(query).scalar() is not None


def _result(attempt: StepAttempt, answer: VendorAck) -> Transition:
    details = {
        "pass": attempt.n,
        "attempt": attempt.attempt,
        "status": answer.status,
        "outcome": answer.outcome,
    }
    return transition("result", details)


def _following(row: Row, attempt: StepAttempt, answer: VendorAck) -> list[Transition]:
    """Return what follows an answer; nothing where another attempt is waited for."""
    if row["state"] != "submitted" or row["attempts"] != attempt.attempt:
        return []
    if answer.outcome != ACKNOWLEDGED:
        next_at = None if answer.next_at is None else stamp(answer.next_at)
        return [transition(answer.then, {"next_at": next_at}, next_at=next_at)]
    if attempt.n == len(numbers(row, "passes_s")):
        # Stays submitted and due, with nothing left to call: `complete` is its next step.
        return []
    next_at = stamp(_due_at(row, attempt.n + 1))
    return [transition("settling", {"next_at": next_at}, next_at=next_at)]


def _due_at(row: Row, n: int) -> datetime:
    """Return when a pass of this round was to be made."""
    offset_s = numbers(row, "passes_s")[n - 1]
    return moment(row["quiesced_at"]) + timedelta(seconds=offset_s)
