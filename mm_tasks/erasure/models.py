"""Erasures as values: the state of one, a worker's claim on it, a call of the vendor.

Ids of a subject are in `Erasure` alone, and in no `repr`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple, Self

from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.deadlines import BLOCKED_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from sqlalchemy import RowMapping

    from mm_tasks.erasure.audit.tables import SubjectIds

Step = Literal["start", "fence", "purge", "quiesce", "call", "complete"]
# The next step in each open state.
_STEPS: Mapping[str, Step] = {
    **dict.fromkeys(protocol.OPEN, "call"),
    protocol.SCHEDULED: "start",
    "received": "fence",
    "fenced": "purge",
    "purged": "quiesce",
}


# Erasures that have yet to scan the records; see `ErasureWorkflow`.
TO_SCAN = ("received", "fenced", "purged")
# The longest time between two steps in each state that has one. A later step is due at once: the
# database's clock was set back since it was planned.
WAITS = {
    **dict.fromkeys(TO_SCAN, timedelta(minutes=1)),
    **dict.fromkeys(protocol.BLOCKED, BLOCKED_MAX),
}


@dataclass(frozen=True, slots=True)
class Erasure:
    """The state of one erasure at `read_at`, by the database. `ids` is None once they are wiped."""

    id: str
    project: str
    state: str
    mode: str
    ids: SubjectIds | None
    next_at: datetime | None
    passes_s: list[float]
    acknowledged: int
    attempts: int
    removed: Mapping[str, int]
    read_at: datetime

    @classmethod
    def of(cls, row: RowMapping, now: datetime) -> Self:
        """Return the value of a row of `mm_erasures`, whose columns have the same names."""
        values = {**row, "read_at": now}
        return cls(**{field.name: values[field.name] for field in fields(cls)})

    @property
    def is_due(self) -> bool:
        """Return whether the next step was due when the row was read.

        A call that waits for the key is due at any time: the project's pause is asked about it.
        """
        if self.state == protocol.WAITING_KEY:
            return True
        if self.next_at is None:
            return False
        wait = self.next_at - self.read_at
        return wait <= timedelta() or wait > WAITS.get(self.state, timedelta.max)

    @property
    def user_id(self) -> str:
        """Return the id to send to the vendor. The erasure must not have ended."""
        assert self.ids is not None, self.id
        return self.ids.user

    @property
    def tags(self) -> tuple[bytes, ...]:
        """Return the tags to fence and to purge: the user's, then the anonymous ones."""
        assert self.ids is not None, self.id
        return tuple(tag for _, tag in self.ids.tags(self.project))

    @property
    def step(self) -> Step | None:
        """Return the next step, which may not be due yet; None once the erasure has ended."""
        if self.state == "submitted" and self.acknowledged == len(self.passes_s):
            return "complete"
        return _STEPS.get(self.state)


@dataclass(frozen=True, slots=True)
class Claim:
    """The exclusive right to take steps of an erasure until the lease expires."""

    token: str
    erasure: Erasure

    @property
    def id(self) -> str:
        """Return the id of the erasure."""
        return self.erasure.id


class Opened(NamedTuple):
    """A committed request: the id of its new erasure, or of the open one of the same user.

    `is_fenced` is whether the fence in Redis is up. With a `claim` the fence must be raised,
    and the caller may do it. Without one the fence is up, or another process is raising it.
    """

    id: str
    is_fenced: bool
    claim: Claim | None = None


class StepAttempt(NamedTuple):
    """A call of the vendor that is about to be made, for pass `n`.

    It is number `calls` of its attempt; the earlier ones ended as the call before the attempt.
    """

    erasure: str
    n: int
    attempt: int
    calls: int = 1


class VendorAck(NamedTuple):
    """The result of a call of the vendor.

    `status` is HTTP's; None without a response. `outcome` is a fixed word;
    `protocol.ACKNOWLEDGED` is success. Otherwise `then` is one of `protocol.BLOCKED`, and the
    next attempt follows `wait_s` after the result is recorded; None waits for a person.
    """

    status: int | None
    outcome: str
    then: str = ""
    wait_s: float | None = None


class ErasureDeadline(NamedTuple):
    """An open erasure that has used `mark` percent of its time, 0 below the first mark.

    `warned` is the highest mark that was logged, `read_at` the database's time of the reading.
    """

    id: str
    state: str
    received_at: datetime
    due_at: datetime
    warned: int
    mark: int
    read_at: datetime
