"""The writes that people ask for: request, cancel, reject, mark as duplicate, lift, retry.

Each is one transaction with its entries. `steps` has the writes of the workflow, `queries`
the reads.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sqlalchemy import select

from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import OPEN, SCHEDULED
from mm_tasks.erasure.audit.tables import SubjectIds
from mm_tasks.erasure.deadlines import one_month_after
from mm_tasks.erasure.models import Opened
from mm_tasks.erasure.queries import open_deadlines
from mm_tasks.erasure.request import NAMES_SUBJECT, SUPPRESS, ErasureRequest, reference_rule
from mm_tasks.erasure.rows import (
    FENCE_LEASE_S,
    ErasureRows,
    Transition,
    ending,
    transaction,
)
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events import ids
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy import RowMapping as Row

    from mm_tasks.erasure.audit.session import AuditSession
    from mm_tasks.erasure.models import ErasureDeadline

_TOO_LATE = "(or eta) must end before the erasure is due, one month after its receipt"


class ErasureCommands:
    """The commands on the erasures of one project."""

    def __init__(self, session: AuditSession) -> None:
        """Take the store; nothing is opened here."""
        self._session = session

    def open_request(
        self, request: ErasureRequest, *, via: str = "call", delay_s: float = 0.0
    ) -> Opened:
        """Accept a request, or add it to the open erasure of the same user.

        Once this returns, the erasure is committed and will be done. New anonymous ids send
        an open erasure back to be fenced, and its worker loses the claim. `via` is one of
        `protocol.VIA`. With `delay_s` a new erasure is scheduled; a scheduled one begins at the
        earliest time that was asked for, so without a delay at once. A `received_at` in the
        future is of a clock that is ahead, and means now. Raises `InvalidEvent`,
        `AuditUnavailable` or `ConfigurationError`.
        """
        request.check()
        with transaction(self._session) as rows:
            received_at = min(request.received_at or rows.now, rows.now)
            not_before = rows.in_(delay_s) if delay_s > 0 else None
            if not_before and not_before >= one_month_after(received_at):
                raise InvalidEvent([Problem("countdown", _TOO_LATE)])
            asked = _Asked(request, via, received_at, not_before)
            row = _open_row(rows, self._session.pseudonyms.of(request.user_id))
            return self._open(rows, asked) if row is None else _add(rows, row, asked)

    def cancel(
        self,
        erasure: str,
        requested_by: str,
        kind: str = "cancelled",
        **details: str,
    ) -> None:
        """End an erasure before the vendor was called, and lift its fence.

        `kind` and `details` state why: `rejected` with the `outcome`, a fixed word such as
        `not_verified`; `duplicate_of` with the id of the `original`. Raises
        `IllegalTransition`, or `InvalidEvent` if `requested_by` is not a reference.
        """
        original = details.get("original")
        details["requested_by"] = requested_by
        with self._row(erasure, requested_by) as (rows, row):
            if original is not None:
                rows.get(original, "original")
            fences = rows.unfence(erasure)
            rows.advance(row, ending(kind, details, rows.now, fences, duplicate_of=original))
        self._session.truncate_wal()

    def lift(self, erasure: str, requested_by: str) -> None:
        """Lift the fence of a completed erasure. Raises as `cancel`."""
        with self._row(erasure, requested_by) as (rows, row):
            fences = rows.unfence(erasure, restored=True)
            details = {"requested_by": requested_by}
            rows.advance(row, [Transition("lifted", details, fences=fences)])

    def retry(self, erasure: str, requested_by: str) -> None:
        """Make the next call of a blocked erasure due now. Raises as `cancel`."""
        with self._row(erasure, requested_by) as (rows, row):
            details, changes = {"requested_by": requested_by}, {"next_at": rows.now}
            rows.advance(row, [Transition("retried", details, changes)])

    def newly_overdue(self) -> list[ErasureDeadline]:
        """Return open erasures that reached another mark since the last call, by deadline."""
        with self._session.read() as connection:
            if not _unwarned(open_deadlines(self._session, connection)):
                return []
        with transaction(self._session) as rows:
            unwarned = _unwarned(open_deadlines(self._session, rows.connection))
            for deadline in unwarned:
                rows.change(deadline.id, warned=deadline.mark)
        return unwarned

    @contextmanager
    def _row(self, erasure: str, requested_by: str) -> Iterator[tuple[ErasureRows, Row]]:
        """Run a transaction on an erasure; raise `InvalidEvent` for a reference that names it."""
        with transaction(self._session) as rows:
            row = rows.get(erasure)
            ids = row["ids"] or SubjectIds("", [])
            rule = reference_rule(requested_by, (ids.user, *ids.anonymous))
            # Once the ids are wiped, only the user id itself can be recognised.
            if not rule and self._session.pseudonyms.of(requested_by) == row["pseudonym"]:
                rule = NAMES_SUBJECT
            if rule:
                raise InvalidEvent([Problem("requested_by", rule)])
            yield rows, row

    def _open(self, rows: ErasureRows, asked: _Asked) -> Opened:
        request, received_at = asked.request, asked.received_at
        due_at = one_month_after(received_at)
        anonymous = list(dict.fromkeys(request.anonymous_ids))
        counts = {"project": rows.project, "anonymous": len(anonymous)}
        details = asked.details(request.mode)
        values = {
            **counts,
            **{name: details[name] for name in ("requested_by", "reason", "mode")},
            "id": ids.uuid7(),
            "ids": SubjectIds(request.user_id, anonymous),
            "pseudonym": self._session.pseudonyms.of(request.user_id),
            "epoch": self._session.pseudonyms.epoch,
            "tickets": [request.ticket] if request.ticket else [],
            "received_at": received_at,
            "due_at": due_at,
            "accepted_at": rows.now,
            "next_at": asked.not_before or rows.now,
        }
        row = rows.insert(values, {**details, **counts, "due_at": stamp(due_at)})
        claim = None if asked.not_before else rows.lease(row, FENCE_LEASE_S)
        return Opened(row["id"], is_fenced=False, claim=claim)


class _Asked(NamedTuple):
    """A request, how and when it was received, and when it may begin if not at once."""

    request: ErasureRequest
    via: str
    received_at: datetime
    not_before: datetime | None

    def details(self, mode: str) -> dict[str, object]:
        """Return the details that the entries of a first and of a repeated request share."""
        later = {} if self.not_before is None else {"not_before": stamp(self.not_before)}
        return {
            "requested_by": self.request.requested_by,
            "ticket": self.request.ticket,
            "reason": str(self.request.reason),
            "received_at": stamp(self.received_at),
            "mode": mode,
            "via": self.via,
            **later,
        }


def _open_row(rows: ErasureRows, pseudonym: str) -> Row | None:
    """Return the open erasure of a user."""
    erasure = tables.erasures.c
    query = select(tables.erasures).where(erasure.pseudonym == pseudonym)
    query = query.where(erasure.project == rows.project, erasure.state.in_(OPEN))
    # Two are open only if a process of an earlier release, which knows no scheduled ones, asked.
    return rows.connection.execute(query.order_by(erasure.id)).mappings().first()


def _add(rows: ErasureRows, row: Row, asked: _Asked) -> Opened:
    """Add a request to the open erasure of its user; start it if that is scheduled and this not."""
    known, user_id = row["ids"].anonymous, asked.request.user_id
    new = [id_ for id_ in dict.fromkeys(asked.request.anonymous_ids) if id_ not in known]
    is_scheduled = row["state"] == SCHEDULED
    transitions = [_ticket_added(row, asked)]
    if new:
        ids = SubjectIds(user_id, [*known, *new])
        again = {} if is_scheduled else {"fenced_at": None, "next_at": rows.now}
        changes = {"ids": ids, "anonymous": len(known) + len(new), **again}
        fences = 0 if is_scheduled else rows.fence(row, ids, after=1 + len(known))
        added = {"anonymous": len(new)}
        transitions.append(Transition("anonymous_added", added, changes, fences))
    starts = is_scheduled and asked.not_before is None
    row = (rows.start if starts else rows.advance)(row, transitions)
    claim = None
    if row["state"] == "received" and (new or not rows.is_held(row)):
        claim = rows.lease(row, FENCE_LEASE_S)
    return Opened(row["id"], row["fenced_at"] is not None, claim)


def _ticket_added(row: Row, asked: _Asked) -> Transition:
    """Return the transition of a repeated request.

    The earlier deadline holds, the earlier beginning of a scheduled erasure, and the mode that
    refuses more events.
    """
    request = asked.request
    mode = SUPPRESS if SUPPRESS in (row["mode"], request.mode) else row["mode"]
    is_known = request.ticket is None or request.ticket in row["tickets"]
    changes = {
        "tickets": row["tickets"] + ([] if is_known else [request.ticket]),
        "mode": mode,
        "due_at": min(row["due_at"], one_month_after(asked.received_at)),
    }
    if row["state"] == SCHEDULED and asked.not_before is not None:
        changes["next_at"] = min(row["next_at"], asked.not_before)
    return Transition("ticket_added", asked.details(mode), changes)


def _unwarned(deadlines: list[ErasureDeadline]) -> list[ErasureDeadline]:
    return [deadline for deadline in deadlines if deadline.mark > deadline.warned]
