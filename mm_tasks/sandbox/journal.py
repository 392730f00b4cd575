"""The journal: one line for each request, to account for sent and stored events.

Bodies are kept unchanged and parsed once each, when the journal is read first: a
server under load does not parse them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mm_tasks.sandbox import payload


@dataclass
class Arrival:
    """One request: its time, route, size and answer.

    `status` is None if a fault or the client broke the request off. `done_at` is
    None while it is in progress.
    """

    at: float
    route: str
    body: bytes = b""
    events: int = 0
    status: int | None = None
    stored_at: float | None = None
    done_at: float | None = None
    fault: str | None = None

    @cached_property
    def ids(self) -> list[Any]:
        """Return the ids in the body, in order; see `payload.ids`."""
        return payload.ids(self.route, self.body)

    @property
    def is_stored(self) -> bool:
        """Return whether the call took effect."""
        return self.stored_at is not None

    def seen(self) -> dict[str, Any]:
        """Return all fields except the ids, without parsing."""
        return {
            "at": self.at,
            "done_at": self.done_at,
            "route": self.route,
            "bytes": len(self.body),
            "events": self.events,
            "status": self.status,
            "stored": self.is_stored,
            "stored_at": self.stored_at,
            "fault": self.fault,
        }

    def line(self) -> dict[str, Any]:
        """Return the line of the journal; parses the body the first time."""
        return {**self.seen(), "ids": self.ids}
