"""The register: what people ask of erasures, and what they are told.

Requests, cancelling and lifting are one transaction each, with their entries. An answer
holds the pseudonym, never an id of the subject. See `steps` for the workflow's steps.
"""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import uuid_utils
from sqlalchemy import func, insert, select

from mm_tasks.buffer import records
from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.protocol import BLOCKED, OPEN, IllegalTransition
from mm_tasks.erasure.deadlines import mark, one_month_after
from mm_tasks.erasure.models import (
    ErasureDeadline,
    Opened,
    erasure_of,
    packed,
    passes_of,
    summary_of,
)
from mm_tasks.erasure.request import NAMES_SUBJECT, SUPPRESS, ErasureRequest, reference_rule
from mm_tasks.erasure.rows import ErasureRows, Transition, is_held, transition, unfence
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.timestamps import moment, stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from datetime import datetime

    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.models import Claim
    from mm_tasks.erasure.rows import Row

# How long whoever asked has to raise the fence before the sweep does it.
_FENCE_LEASE_S = 10
_LISTED_MAX = 1000


class Register:
    """What is known of the erasures of one project."""

    def __init__(self, work: ErasureRows) -> None:
        """Take the work rows; nothing is opened here."""
        self._work = work

    def open_request(
        self,
        request: ErasureRequest,
        now: datetime,
        lease_s: float = _FENCE_LEASE_S,
        *,
        via: str = "call",
    ) -> Opened:
        """Accept a request, or add it to the open erasure of the same subject.

        `via` is one of `protocol.VIA`, for the log.

        Once this returns it is kept, and will be done. New anonymous ids send an open
        erasure back to be fenced, and take it from the worker that has it.
        """
        request.check(now)
        with self._work.transaction() as connection:
            row = self._open_row(connection, request)
            if row is None:
                return self._open(connection, request, via, (now, lease_s))
            added = _ticket_added(row, request, via, now)
            return self._add(connection, row, request, added, (now, lease_s))

    def cancel(self, erasure: str, requested_by: str, now: datetime) -> frozenset[bytes]:
        """End an erasure before the vendor was called; return the tags no longer fenced."""
        return self._end(erasure, transition("cancelled", {"requested_by": requested_by}), now)

    def reject(
        self, erasure: str, requested_by: str, outcome: str, now: datetime
    ) -> frozenset[bytes]:
        """As `cancel`, for a reason in a fixed word, such as `not_verified`."""
        details = {"requested_by": requested_by, "outcome": outcome}
        return self._end(erasure, transition("rejected", details), now)

    def mark_duplicate(
        self, erasure: str, original: str, requested_by: str, now: datetime
    ) -> frozenset[bytes]:
        """As `cancel`, for the reason that another erasure does the same."""
        details = {"requested_by": requested_by, "original": original}
        with self._work.read() as connection:
            if self._work.find(connection, original) is None:
                msg = "there is no such original"
                raise IllegalTransition(msg)
        return self._end(erasure, transition("duplicate_of", details, duplicate_of=original), now)

    def lift(self, erasure: str, requested_by: str, now: datetime) -> frozenset[bytes]:
        """Let events of a completed erasure's subject in again; return the tags freed."""
        with self._work.transaction() as connection:
            row = self._found(connection, erasure)
            self._check_reference(row, requested_by)
            lifted = transition("lifted", {"requested_by": requested_by})
            self._work.advance(connection, row, [lifted], now)
            return unfence(connection, erasure, now)

    def retry(self, erasure: str, requested_by: str, now: datetime) -> None:
        """Let a blocked erasure call the vendor again at once."""
        with self._work.transaction() as connection:
            row = self._found(connection, erasure)
            self._check_reference(row, requested_by)
            again = transition("retried", {"requested_by": requested_by}, next_at=stamp(now))
            self._work.advance(connection, row, [again], now)

    def fences(self) -> Iterator[bytes]:
        """Yield all tags whose events are to be refused, as of one moment, some of them twice."""
        column = tables.suppressions.c
        query = select(column.tag).where(
            column.project == self._work.project, column.lifted_at.is_(None)
        )
        with self._work.read() as connection:
            # As they come: there may be a million.
            found = connection.execute(query.execution_options(yield_per=1000))
            yield from map(bytes.fromhex, found.scalars())

    @property
    def store_id(self) -> str:
        """Return the id of the audit store; makes the store where there is none."""
        return self._work.store_id

    def log_size(self) -> int:
        """Return the number of entries of the log, of all projects."""
        with self._work.read() as connection:
            return audit_log.head(connection).size

    def fence_count(self) -> int:
        """Return the number of those tags."""
        column = tables.suppressions.c
        query = select(func.count(column.tag.distinct())).where(
            column.project == self._work.project, column.lifted_at.is_(None)
        )
        with self._work.read() as connection:
            return int(connection.execute(query).scalar_one())

    def show(self, erasure: str) -> dict[str, Any] | None:
        """Return all that is known of an erasure, ready for JSON; None if there is none.

        `passes` has one entry for each pass that was called, as its last attempt went.
        """
        with self._work.read() as connection:
            row = self._work.find(connection, erasure)
            if row is None:
                return None
            query = select(tables.passes).where(tables.passes.c.erasure == erasure)
            attempts = connection.execute(query.order_by(tables.passes.c.attempt)).mappings()
            return {**summary_of(row), "passes": passes_of(map(dict, attempts))}

    def listed(
        self, states: Collection[str] | None = None, limit: int = _LISTED_MAX
    ) -> list[dict[str, Any]]:
        """Return what is known of erasures but for their passes, the newest first."""
        column = tables.erasures.c
        query = select(tables.erasures).where(column.project == self._work.project)
        if states is not None:
            query = query.where(column.state.in_(states))
        query = query.order_by(column.accepted_at.desc(), column.id.desc()).limit(limit)
        with self._work.read() as connection:
            return [summary_of(dict(row)) for row in connection.execute(query).mappings()]

    def history(self, erasure: str) -> tuple[list[dict[str, Any]], audit_log.Head]:
        """Return the entries of an erasure, none if there is no such, and the end of the log.

        Both are of one moment.
        """
        with self._work.read() as connection:
            is_known = self._work.find(connection, erasure) is not None
            entries = audit_log.entries(connection, erasure) if is_known else []
            return entries, audit_log.head(connection)

    def summary(self, now: datetime) -> dict[str, Any]:
        """Return how many erasures are open, overdue and blocked, and in which states these are."""
        return summed(self.deadlines(now), now)

    def deadlines(self, now: datetime) -> list[ErasureDeadline]:
        """Return all open erasures, by deadline; `mark` is 0 where less than 50 % is used up."""
        with self._work.read() as connection:
            return [deadline for deadline, _ in self._deadlines(connection, now)]

    def overdue(self, now: datetime) -> list[ErasureDeadline]:
        """Return open erasures that used up 50, 80 or 100 % of their time, by deadline."""
        return [deadline for deadline in self.deadlines(now) if deadline.mark]

    def newly_overdue(self, now: datetime) -> list[ErasureDeadline]:
        """As `overdue`, but each mark of an erasure only once, to whoever asks first."""
        if not self.overdue(now):
            return []
        with self._work.transaction() as connection:
            found = self._deadlines(connection, now)
            news = [deadline for deadline, warned in found if deadline.mark > warned]
            for one in news:
                self._work.change(connection, one.id, warned=one.mark)
        return news

    def _open_row(self, connection: Connection, request: ErasureRequest) -> Row | None:
        """Return the open erasure of the same user, by tag: pseudonyms change with their key."""
        tag = records.tag(self._work.project, "user", request.user_id).hex()
        erasure, fenced = tables.erasures.c, tables.suppressions.c
        query = (
            select(tables.erasures)
            .join(tables.suppressions, fenced.erasure == erasure.id)
            .where(erasure.project == self._work.project, erasure.state.in_(OPEN))
            .where(fenced.project == self._work.project, fenced.kind == "user", fenced.tag == tag)
        )
        row = connection.execute(query).mappings().one_or_none()
        return None if row is None else dict(row)

    def _open(
        self,
        connection: Connection,
        request: ErasureRequest,
        via: str,
        lease: tuple[datetime, float],
    ) -> Opened:
        now, lease_s = lease
        received_at = request.received_at or now
        anonymous = tuple(dict.fromkeys(request.anonymous_ids))
        asked = {
            "requested_by": request.requested_by,
            "reason": str(request.reason),
            "received_at": stamp(received_at),
            "due_at": stamp(one_month_after(received_at)),
            "mode": request.mode,
            "anonymous": len(anonymous),
            "project": self._work.project,
        }
        values: dict[str, Any] = {
            **_NOT_STARTED,
            **asked,
            "id": str(uuid_utils.uuid7()),
            "ids": packed(request.user_id, anonymous),
            "pseudonym": self._work.pseudonyms.of(request.user_id),
            "epoch": self._work.pseudonyms.epoch,
            "tickets": json.dumps([request.ticket] if request.ticket else []),
            "accepted_at": stamp(now),
            "next_at": stamp(now),
        }
        self._work.open(connection, values, {**asked, "ticket": request.ticket, "via": via})
        self._suppress(connection, values["id"], [("user", request.user_id)], now)
        self._suppress(connection, values["id"], [("anonymous", one) for one in anonymous], now)
        claim = self._work.lease(connection, values, now, lease_s)
        return Opened(claim.id, is_new=True, is_fenced=False, claim=claim)

    def _add(
        self,
        connection: Connection,
        row: Row,
        request: ErasureRequest,
        added: Transition,
        lease: tuple[datetime, float],
    ) -> Opened:
        """Note that an open erasure was asked for again, and what is new in that."""
        now, lease_s = lease
        user_id, known = erasure_of(row).ids or (request.user_id, ())
        new = tuple(one for one in dict.fromkeys(request.anonymous_ids) if one not in known)
        moves = [added]
        if new:
            moves.append(_anonymous_added(user_id, (*known, *new), len(new), now))
        row = self._work.advance(connection, row, moves, now)
        self._suppress(connection, row["id"], [("anonymous", one) for one in new], now)
        claim: Claim | None = None
        if new or (row["state"] == "received" and not is_held(row, now)):
            claim = self._work.lease(connection, row, now, lease_s)
        is_fenced = row["fenced_at"] is not None
        return Opened(row["id"], is_new=False, is_fenced=is_fenced, claim=claim)

    def _suppress(
        self, connection: Connection, erasure: str, ids: Iterable[tuple[str, str]], now: datetime
    ) -> None:
        for kind, one in ids:
            values = {
                "erasure": erasure,
                "tag": records.tag(self._work.project, kind, one).hex(),
                "project": self._work.project,
                "kind": kind,
                "since": stamp(now),
            }
            connection.execute(insert(tables.suppressions).values(values))

    def _found(self, connection: Connection, erasure: str) -> Row:
        row = self._work.find(connection, erasure)
        if row is None:
            msg = "there is no such erasure"
            raise IllegalTransition(msg)
        return row

    def _check_reference(self, row: Row, requested_by: str) -> None:
        """Raise `InvalidEvent` unless the log may hold it: see `ErasureRequest.check`.

        Once the ids are wiped, only the id itself can be told, by its pseudonym.
        """
        user_id, anonymous = erasure_of(row).ids or ("", ())
        rule = reference_rule(requested_by, (user_id, *anonymous))
        if not rule and self._work.pseudonyms.of(requested_by) == row["pseudonym"]:
            rule = NAMES_SUBJECT
        if rule:
            raise InvalidEvent([Problem("requested_by", rule)])

    def _end(self, erasure: str, end: Transition, now: datetime) -> frozenset[bytes]:
        with self._work.transaction() as connection:
            row = self._found(connection, erasure)
            self._check_reference(row, str(end.details["requested_by"]))
            ended = {"ended_at": stamp(now), "next_at": None, "token": None, "lease_until": None}
            end = end._replace(changes={**end.changes, **ended})
            self._work.advance(connection, row, [end, transition("wiped", ids=None)], now)
            freed = unfence(connection, erasure, now)
        self._work.truncate_wal()
        return freed

    def _deadlines(
        self, connection: Connection, now: datetime
    ) -> list[tuple[ErasureDeadline, int]]:
        column = tables.erasures.c
        query = select(
            column.id, column.state, column.received_at, column.due_at, column.warned
        ).where(column.project == self._work.project, column.state.in_(OPEN))
        found = []
        for row in connection.execute(query.order_by(column.due_at, column.id)):
            received_at, due_at = moment(row.received_at), moment(row.due_at)
            reached = mark(received_at, due_at, now)
            found.append(
                (ErasureDeadline(row.id, row.state, received_at, due_at, reached), row.warned)
            )
        return found


def summed(known: Collection[ErasureDeadline], now: datetime) -> dict[str, Any]:
    """Return what `Register.summary` does, of all open erasures."""
    blocked = Counter(one.state for one in known if one.state in BLOCKED)
    return {
        "open": len(known),
        "overdue": sum(one.due_at <= now for one in known),
        "blocked": blocked.total(),
        "blocked_reasons": dict(blocked),
    }


_NOT_STARTED: dict[str, Any] = {
    "round": 0,
    "passes_s": "[]",
    "acknowledged": 0,
    "attempts": 0,
    "removed": "{}",
    "fenced_at": None,
    "quiesced_at": None,
    "lease_until": None,
    "warned": 0,
}


def _ticket_added(row: Row, request: ErasureRequest, via: str, now: datetime) -> Transition:
    """Return what a repeated request changes.

    The earlier deadline holds, and so does the mode that keeps more events out.
    """
    received_at = request.received_at or now
    mode = SUPPRESS if SUPPRESS in (row["mode"], request.mode) else row["mode"]
    tickets = json.loads(row["tickets"])
    if request.ticket is not None and request.ticket not in tickets:
        tickets.append(request.ticket)
    details = {
        "requested_by": request.requested_by,
        "ticket": request.ticket,
        "reason": str(request.reason),
        "received_at": stamp(received_at),
        "mode": mode,
        "via": via,
    }
    due_at = min(row["due_at"], stamp(one_month_after(received_at)))
    return transition(
        "ticket_added", details, tickets=json.dumps(tickets), mode=mode, due_at=due_at
    )


def _anonymous_added(
    user_id: str, anonymous: tuple[str, ...], added: int, now: datetime
) -> Transition:
    changes: dict[str, object] = {
        "ids": packed(user_id, anonymous),
        "anonymous": len(anonymous),
        "fenced_at": None,
        "next_at": stamp(now),
    }
    return Transition("anonymous_added", {"anonymous": added}, changes)
