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
from logging import getLogger
from typing import TYPE_CHECKING

from sqlalchemy import and_, case, insert, or_, select, update

from mm_tasks.erasure.audit import row_evidence, tables
from mm_tasks.erasure.audit.protocol import ACKNOWLEDGED, CALLED, OPEN, SCHEDULED, WAITING_KEY
from mm_tasks.erasure.deadlines import first_call_at
from mm_tasks.erasure.models import TO_SCAN, WAITS, Claim, Erasure, StepAttempt, VendorAck
from mm_tasks.erasure.request import ONCE
from mm_tasks.erasure.rows import (
    FENCE_LEASE_S,
    ErasureRows,
    Transition,
    ending,
    transaction,
)
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import datetime

    from sqlalchemy import RowMapping as Row

    from mm_tasks.erasure.audit.session import AuditSession

_log = getLogger(__name__)

_DUE_MAX = 100
_PASS = tables.passes.c
# The states whose next step is the first of its kind; a person waits for these.
_FIRST = (SCHEDULED, *TO_SCAN, "quiesced")


class ErasureSteps:
    """The steps of the erasures of one project."""

    def __init__(self, session: AuditSession) -> None:
        """Take the store; nothing is opened here."""
        self._session = session

    def due(
        self, lease_s: float, limit: int = _DUE_MAX, states: Collection[str] = OPEN
    ) -> list[str]:
        """Return the ids of unclaimed erasures whose next step is due.

        Those that have not called the vendor come first, then the longest due; of those that wait
        for the key the ones that a person retried. As `Erasure.is_due` and `claim` tell; `lease_s`
        as for `claim`.
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
                .where(or_(column.state == WAITING_KEY, column.next_at <= now, *too_late))
                .where(or_(lease.is_(None), lease <= now, lease > until))
                .order_by(case((column.state.in_(_FIRST), 0), else_=1))
                .order_by(column.next_at.is_(None), column.next_at, column.id)
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

        `passes_s` has the wait before each pass: of the first from now, of each other one from the
        acknowledged call before it. At least one. The first one waits for the erasure's
        `call_after`.
        """
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            details = {"passes": len(passes_s), "passes_s": list(passes_s)}
            changes = {
                "quiesced_at": rows.now,
                "round": tables.erasures.c.round + 1,
                "passes_s": list(passes_s),
                "next_at": first_call_at(rows.now, passes_s[0], row["call_after"]),
            }
            quiesced = Transition("quiesced", details, changes)
            return _advanced(claim, rows, row, quiesced)

    def intent(self, claim: Claim) -> StepAttempt | None:
        """Record that the vendor is about to be called; the caller then makes this call.

        After calls with the same outcome it is one more of their attempt, without an entry.
        None if the claim is lost, or no pass is due any more.
        """
        with self._held(claim) as (rows, row):
            # The result of an earlier call may have arrived since the claim.
            if row is None or not rows.value(row).is_due:
                return None
            # The caller names the ids of its claim, which was read before.
            is_as_claimed = row["ids"] == claim.erasure.ids
            key = self._session.pseudonyms
            if not (is_as_claimed and row_evidence.holds(rows.connection, row, key)):
                self._stop(rows, row)
                return None
            n, last = row["acknowledged"] + 1, _call(rows, claim.id, row["attempts"])
            if last is not None and (last["round"], last["n"]) != (row["round"], n):
                last = None
            if last and last["outcome"] is None and last["answered_at"] is not None:
                again = StepAttempt(claim.id, n, last["attempt"], last["calls"] + 1)
                _change_call(rows, again, calls=again.calls, answered_at=None)
                return again
            attempt = StepAttempt(claim.id, n, row["attempts"] + 1)
            details = {"pass": n, "attempt": attempt.attempt}
            rows.advance(row, [Transition("intent", details)])
            due_at = last["due_at"] if last else _due_at(rows, row, n)
            times = {"due_at": due_at, "sent_at": rows.now}
            values = {**attempt._asdict(), **times, "round": row["round"]}
            rows.connection.execute(insert(tables.passes).values(values))
            return attempt

    def _stop(self, rows: ErasureRows, row: Row) -> None:
        """Let no call follow: the row is not the one that the log says. A person must look."""
        _log.error("erasure_row_changed erasure=%s", row["id"], extra={"erasure": row["id"]})
        logged = row_evidence.logged_state(rows.connection, row["id"], self._session.pseudonyms)
        stop = Transition("attention", {"next_at": None, "outcome": "row_changed"})
        if logged is not None and logged.state == row["state"] != "attention":
            rows.advance(row, [stop])
        rows.change(row["id"], next_at=None)

    def wait_for_key(self, claim: Claim) -> None:
        """Give up a claim until the vendor accepts the key again, with an entry if that is new."""
        with self._held(claim) as (rows, row):
            if row is None:
                return
            if row["state"] != WAITING_KEY:
                rows.advance(row, [_then(WAITING_KEY, None)])
            rows.change(claim.id, token=None, lease_until=None)

    def result(self, attempt: StepAttempt, ack: VendorAck) -> Erasure:
        """Record the result of a call, and its effect if the erasure still waits for it.

        An outcome that the call before had too adds no entry. Safe to repeat: the first result
        of a call stays.
        """
        with transaction(self._session) as rows:
            row, call = rows.get(attempt.erasure), _call(rows, attempt.erasure, attempt.attempt)
            assert call is not None, "a call has its row"
            if call["answered_at"] is not None or call["calls"] != attempt.calls:
                return rows.value(row)
            newest = (row["attempts"], row["round"])
            is_awaited = row["state"] in CALLED and (call["attempt"], call["round"]) == newest
            following = _following(rows, row, attempt, ack) if is_awaited else []
            if following and _is_as_before(rows, row, call, ack):
                rows.change(row["id"], **following[0].changes)
                _change_call(rows, attempt, answered_at=rows.now)
                return rows.value(rows.get(row["id"]))
            values = {"status": ack.status, "outcome": ack.outcome}
            details = {"pass": attempt.n, "attempt": attempt.attempt, **values}
            if attempt.calls > 1:
                details["calls"] = attempt.calls
            # Without a following entry every pass was acknowledged, and `complete` is due.
            due = {"next_at": rows.now} if is_awaited and not following else {}
            row = rows.advance(row, [Transition("result", details, due), *following])
            _change_call(rows, attempt, **values, answered_at=rows.now)
            return rows.value(row)

    def complete(self, claim: Claim) -> Erasure | None:
        """Record that every pass was acknowledged, and wipe the subject's ids.

        None if the claim is lost. In mode `once` this also lowers the fence.
        """
        with self._held(claim) as (rows, row):
            if row is None:
                return None
            details = {"acknowledged": row["acknowledged"]}
            transitions = ending("completed", details, rows.now, aof="")
            if row["mode"] == ONCE:
                fences = rows.unfence(claim.id, restored=True)
                transitions.append(Transition("released", fences=fences))
            erasure = rows.value(rows.advance(row, transitions))
        self._session.truncate_wal()
        return erasure

    def without_aof(self, limit: int) -> dict[str, str]:
        """Return the completed erasures without a result of a rewrite of Redis's AOF, oldest first.

        With the run_id of the server that began one for them, or ''.
        """
        column = tables.erasures.c
        query = select(column.id, column.aof).where(column.project == self._session.project)
        query = query.where(column.aof.is_not(None)).order_by(column.ended_at, column.id)
        with self._session.read() as connection:
            return {row.id: row.aof for row in connection.execute(query.limit(limit))}

    def await_aof(self, erasures: Collection[str], run_id: str) -> None:
        """Note that this server began a rewrite of its AOF after these erasures completed."""
        with transaction(self._session) as rows:
            column = tables.erasures.c
            query = update(tables.erasures).where(column.id.in_(erasures))
            rows.connection.execute(query.where(column.aof.is_not(None)).values(aof=run_id))

    def record_aof(self, erasures: Collection[str], outcome: str) -> None:
        """Record the result of the rewrite of Redis's AOF for these erasures, in a fixed word."""
        with transaction(self._session) as rows:
            for row in map(rows.get, erasures):
                if row["aof"] is not None:
                    result = Transition("aof_rewritten", {"outcome": outcome}, {"aof": None})
                    rows.advance(row, [result])

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
    """Return the effect of the awaited result; nothing after the last pass."""
    if ack.outcome != ACKNOWLEDGED:
        wait_s, limit = ack.wait_s, rows.now + WAITS[ack.then]
        return [_then(ack.then, None if wait_s is None else min(rows.in_(wait_s), limit))]
    if attempt.n < len(row["passes_s"]):
        return [_then("settling", rows.in_(row["passes_s"][attempt.n]))]
    return []


def _then(kind: str, next_at: datetime | None) -> Transition:
    details = {"next_at": None if next_at is None else stamp(next_at)}
    return Transition(kind, details, {"next_at": next_at})


def _is_as_before(rows: ErasureRows, row: Row, call: Row, ack: VendorAck) -> bool:
    """Return whether a call changed nothing: neither the outcome of its pass nor the state."""
    before = _last_result(rows, row, call["n"])
    if before is None or row["state"] != ack.then:
        return False
    return (before["status"], before["outcome"]) == (ack.status, ack.outcome)


def _call(rows: ErasureRows, erasure: str, attempt: int) -> Row | None:
    """Return the row of an attempt."""
    query = select(tables.passes).where(_PASS.erasure == erasure, _PASS.attempt == attempt)
    return rows.connection.execute(query).mappings().one_or_none()


def _last_result(rows: ErasureRows, row: Row, n: int, *outcomes: str) -> Row | None:
    """Return the newest attempt of a pass of this round with a result, or with this outcome."""
    query = select(tables.passes).where(_PASS.erasure == row["id"], _PASS.outcome.is_not(None))
    query = query.where(_PASS.round == row["round"], _PASS.n == n)
    if outcomes:
        query = query.where(_PASS.outcome.in_(outcomes))
    query = query.order_by(_PASS.attempt.desc()).limit(1)
    return rows.connection.execute(query).mappings().one_or_none()


def _change_call(rows: ErasureRows, call: StepAttempt, **values: object) -> None:
    is_attempt = (_PASS.erasure == call.erasure, _PASS.attempt == call.attempt)
    rows.connection.execute(update(tables.passes).where(*is_attempt).values(values))


def _due_at(rows: ErasureRows, row: Row, n: int) -> datetime:
    """Return the planned time of a pass: its interval after the acknowledged pass before it.

    The first pass counts from quiesce, and waits for the erasure's `call_after`.
    """
    if n > len(row["passes_s"]):
        raise _changed(row)
    wait_s = row["passes_s"][n - 1]
    if n == 1:
        return first_call_at(row["quiesced_at"], wait_s, row["call_after"])
    acknowledged = _last_result(rows, row, n - 1, ACKNOWLEDGED)
    if acknowledged is None:
        raise _changed(row)
    since: datetime = acknowledged["answered_at"]
    return since + timedelta(seconds=wait_s)


def _changed(row: Row) -> AuditChainBroken:
    rule = "its passes are not those of its state; see mm-tasks audit verify"
    return AuditChainBroken(f"erasure {row['id']}: {rule}")
