"""Rows: what was stored, for which project, and what a forget has taken away again.

A forget runs late: until `due_at` its rows are still there. It takes the rows
stored before it was *received*; rows that arrive later stay, it is no tombstone.
Nothing is deduplicated. Deposits stay whole, so the journal still knows of rows
that are gone, and bodies are parsed only when somebody looks.
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
    """One accepted call of forget: when it was received, and when it has run."""

    at: float
    due_at: float
    project: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Row:
    """One stored event or `$identify`; `number` tells it from its twins."""

    number: str
    project: str
    stored_at: float
    event: dict[str, Any]


class Store:
    """Deposits and forgets in the order in which they came."""

    def __init__(self) -> None:
        """Start empty."""
        self.deposits: list[Deposit] = []
        self.forgets: list[Forget] = []

    def rows(self, now: float, project: str | None = None) -> Iterator[Row]:
        """Yield the rows there are at `now`, of one project or of all, oldest first."""
        # Of several forgets of one user, the last that has run takes all that the others took.
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
