"""Rows: stored bodies by project, without the rows that a forget removed.

A forget runs late: its rows exist until `due_at`. It removes the rows stored
before it was *received*; later rows stay, since it is no tombstone. Nothing is
deduplicated. Deposits stay whole, so the journal still has removed rows, and
bodies are parsed only when they are read.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mm_tasks.sandbox import payload

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Deposit:
    """One body whose rows were stored, all at once."""

    at: float
    project: str
    route: str
    body: bytes


@dataclass(frozen=True, slots=True)
class Forget:
    """One accepted call of forget: the time of its arrival, and the time when it runs."""

    at: float
    due_at: float
    project: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """One stored event or `$identify`; `number` distinguishes equal rows."""

    number: str
    project: str
    stored_at: float
    event: dict[str, Any]


class Store:
    """Deposits and forgets, in order of arrival."""

    def __init__(self) -> None:
        """Start empty."""
        self.deposits: list[Deposit] = []
        self.forgets: list[Forget] = []

    def rows(self, now: float, project: str | None = None) -> Iterator[Row]:
        """Yield the rows that exist at `now`, of one project or of all, oldest first."""
        # The last of several forgets of one user removes all rows that the others removed.
        gone: dict[tuple[str, object], float] = {}
        for forget in self.forgets:
            if forget.due_at <= now:
                gone[forget.project, forget.user_id] = forget.at
        for index, deposit in enumerate(self.deposits):
            if project is not None and deposit.project != project:
                continue
            for place, event in enumerate(payload.rows(deposit.route, deposit.body)):
                user_id = event.get("user_id")
                subject = deposit.project, user_id if isinstance(user_id, str) else None
                if deposit.at >= gone.get(subject, 0):
                    yield Row(f"{index}-{place}", deposit.project, deposit.at, event)
