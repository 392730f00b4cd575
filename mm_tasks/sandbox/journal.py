"""The journal: one line for each request, for whoever counts what was sent and stored.

Bodies are kept as they came and parsed when the journal is asked for, once each:
a server under load does not read them twice.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mm_tasks.sandbox import payload


@dataclass
class Arrival:
    """One request as it was seen: when, where, how big, and what was answered.

    `status` is None where the exchange was broken off, by a fault or by the
    client. `done_at` is None while it is under way.
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
        """Say whether the call took effect."""
        return self.stored_at is not None

    def seen(self) -> dict[str, Any]:
        """Return all but the ids; cheap."""
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
