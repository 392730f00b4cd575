"""One attempt to send a batch: admitted or rejected by `begin`, and the size of its request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class RequestStats(NamedTuple):
    """One request as its sender measured it: its duration and the content of its body."""

    took_s: float
    events: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """An attempt may be sent now, and by this worker alone until the lease ends.

    `bodies` are all bodies of the batch, or a part of them while a refused event is sought.
    They are empty when the attempt was taken over to settle it; `sent` still counts them.
    """

    token: str
    attempt: int
    in_a_row: int  # attempts since the last definite answer, this one included
    generation: int
    bodies: list[bytes]
    sent: int
    left: int = 0  # records of the batch that this attempt does not send
    paused: str = ""  # the kind of the pause, if this is its probe
    asked_at_s: float = 0  # monotonic clock of the process, just before it was admitted
    exchange: RequestStats | None = None  # None until a request was made


@dataclass(frozen=True, slots=True)
class Rejection:
    """An attempt may not be sent; see `batch_begin.lua` for the reasons."""

    reason: Literal["gone", "unloaded", "held", "paused", "wait", "slot", "empty"]
    wait_s: float = 0
