"""The reads: the state of erasures, their entries, their deadlines, and the fences.

No result holds an id of a subject; `subject` is its pseudonym.
"""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, func, select, type_coerce

from mm_tasks.erasure.audit import log as audit_log
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.fences import fenced_tags
from mm_tasks.erasure.audit.protocol import BLOCKED, OPEN, SCHEDULED
from mm_tasks.erasure.deadlines import mark
from mm_tasks.erasure.models import ErasureDeadline
from mm_tasks.timestamps import stamp

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from sqlalchemy import ColumnElement, RowMapping
    from sqlalchemy.engine import Connection

    from mm_tasks.erasure.audit.checkpoints import Checkpoint
    from mm_tasks.erasure.audit.session import AuditSession

_LISTED_MAX = 1000
# Columns that `show` and `listed` may hold: no id, and no state of the workflow.
_SHOWN = (
    *("id", "project", "state", "mode", "anonymous", "epoch", "requested_by", "tickets", "reason"),
    *("received_at", "due_at", "accepted_at", "fenced_at", "quiesced_at", "ended_at", "next_at"),
    "call_after",
    *("passes_s", "acknowledged", "attempts", "removed", "duplicate_of"),
)
_SHOWN_OF_PASS = ("round", "n", "due_at", "sent_at", "answered_at", "status", "outcome")


class ErasureQueries:
    """The erasures of one project, read only."""

    def __init__(self, session: AuditSession) -> None:
        """Take the store; nothing is opened here."""
        self._session = session

    @property
    def store_id(self) -> str:
        """Return the id of the audit store, which is created if it is missing."""
        return self._session.store_id

    def fences(self) -> Iterator[bytes]:
        """Yield the tags of fenced ids, read at one moment; a tag may occur twice.

        Raises `AuditChainBroken` at the end unless the rows are those that the log says: the
        caller must not use any tag before. `audit/seals` has the reason.
        """
        with self._session.read() as connection:
            seals, project = self._session.pseudonyms.seals, self._session.project
            yield from fenced_tags(connection, seals, project)

    def fence_count(self) -> int:
        """Return the number of fenced tags, each counted once. Raises as `fences`."""
        return len(set(self.fences()))

    def fence_rows(self) -> int:
        """Return the number of rows of the fence: one for each tag of each erasure."""
        column = tables.suppressions.c
        query = select(func.count()).where(column.project == self._session.project)
        with self._session.read() as connection:
            return connection.execute(query).scalar_one()

    def fence_sum(self) -> int:
        """Return a number that changes whenever the fences in SQL do. Raises as `fences`."""
        with self._session.read() as connection:
            return audit_log.tail(connection, self._session.pseudonyms.seals).fences

    def show(self, erasure: str) -> dict[str, Any] | None:
        """Return an erasure, ready for JSON; None if it does not exist.

        `passes` has one item for each pass that was called: its last attempt, and in `attempts`
        the number of calls.
        """
        with self._session.read() as connection:
            row = tables.find_erasure(connection, self._session.project, erasure)
            if row is None:
                return None
            query = select(tables.passes).where(tables.passes.c.erasure == erasure)
            attempts = connection.execute(query.order_by(tables.passes.c.attempt)).mappings()
            return {**_summary(row), "passes": _passes(attempts)}

    def listed(
        self,
        states: Collection[str] | None = None,
        limit: int = _LISTED_MAX,
        *,
        ticket: str | None = None,
        since: datetime | None = None,
    ) -> list[dict[str, Any]]:
        """Return erasures as `show` does, without their passes, the newest first.

        Only those in one of these states, with this ticket, and accepted `since` this time.
        """
        column = tables.erasures.c
        conditions: list[ColumnElement[bool]] = []
        if states is not None:
            conditions.append(column.state.in_(states))
        if ticket is not None:
            # Not LIKE, which ignores the case on SQLite. The column is a list in JSON.
            tickets = type_coerce(column.tickets, Text)
            conditions.append(func.replace(tickets, json.dumps(ticket), "") != tickets)
        if since is not None:
            conditions.append(column.accepted_at >= since)
        return self._summaries(limit, *conditions)

    def find(self, user_id: str) -> list[dict[str, Any]]:
        """Return the erasures of a person as `listed` does, by the pseudonym of the user id."""
        pseudonym = self._session.pseudonyms.of(user_id)
        return self._summaries(_LISTED_MAX, tables.erasures.c.pseudonym == pseudonym)

    def _summaries(self, limit: int, *conditions: ColumnElement[bool]) -> list[dict[str, Any]]:
        column = tables.erasures.c
        query = select(tables.erasures).where(column.project == self._session.project, *conditions)
        query = query.order_by(column.accepted_at.desc(), column.id.desc()).limit(limit)
        with self._session.read() as connection:
            return [_summary(row) for row in connection.execute(query).mappings()]

    def history(self, erasure: str) -> tuple[list[dict[str, Any]], Checkpoint]:
        """Return the entries of an erasure and the head of the log, read at one moment.

        The list is empty if the erasure does not exist.
        """
        with self._session.read() as connection:
            row = tables.find_erasure(connection, self._session.project, erasure)
            entries = [] if row is None else audit_log.entries(connection, erasure)
            return entries, audit_log.head(connection)

    def summary(self) -> dict[str, Any]:
        """Return the numbers of open, overdue and blocked erasures."""
        return summarize(self.deadlines())

    def deadlines(self) -> list[ErasureDeadline]:
        """Return all open erasures, by deadline."""
        with self._session.read() as connection:
            return open_deadlines(self._session, connection)


def open_deadlines(session: AuditSession, connection: Connection) -> list[ErasureDeadline]:
    """Return all open erasures of a project, by deadline."""
    now = session.log.database.now(connection)
    column = tables.erasures.c
    query = select(column.id, column.state, column.received_at, column.due_at, column.warned)
    query = query.where(column.project == session.project, column.state.in_(OPEN))
    return [
        ErasureDeadline(*row, mark=mark(row.received_at, row.due_at, now), read_at=now)
        for row in connection.execute(query.order_by(column.due_at, column.id))
    ]


def summarize(deadlines: Collection[ErasureDeadline]) -> dict[str, Any]:
    """Return the numbers of open, overdue and blocked erasures."""
    blocked = Counter(deadline.state for deadline in deadlines if deadline.state in BLOCKED)
    return {
        "open": len(deadlines),
        "overdue": sum(deadline.due_at <= deadline.read_at for deadline in deadlines),
        "blocked": blocked.total(),
        "blocked_reasons": dict(blocked),
    }


def _summary(row: RowMapping) -> dict[str, Any]:
    shown = _plain(row, _SHOWN)
    return {
        **shown,
        "not_before": shown["next_at"] if row["state"] == SCHEDULED else None,
        "subject": row["pseudonym"],
        "is_wiped": row["ids"] is None,
    }


def _passes(attempts: Iterable[RowMapping]) -> list[dict[str, Any]]:
    """Return the last attempt of each pass, and the number of its calls."""
    passes: dict[tuple[int, int], dict[str, Any]] = {}
    for row in attempts:
        key, shown = (row["round"], row["n"]), _plain(row, _SHOWN_OF_PASS)
        before = passes.get(key, {"attempts": 0})
        if row["outcome"] is None and row["answered_at"] is not None:
            # Each call of this attempt ended as the one before it.
            shown |= {"status": before["status"], "outcome": before["outcome"]}
        passes[key] = {**shown, "attempts": before["attempts"] + row["calls"]}
    return list(passes.values())


def _plain(row: RowMapping, names: Iterable[str]) -> dict[str, Any]:
    """Return these columns of a row, ready for JSON."""
    fields = ((name, row[name]) for name in names)
    return {name: stamp(value) if isinstance(value, datetime) else value for name, value in fields}
