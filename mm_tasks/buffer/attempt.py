"""One attempt to send a batch, as `begin` admits or refuses it, and what it was seen to take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple


class RequestStats(NamedTuple):
    """One request as its sender saw it: how long it took, and what its body held."""

    took_s: float
    events: int
    body_bytes: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """An attempt may be sent now, and by nobody else until the lease ends.

    `bodies` are all of the batch's, or a part of them while a refused one is sought;
    empty when the attempt was taken over to settle it. `sent` counts them all the same.
    """

    token: str
    attempt: int
    in_a_row: int  # attempts since the last answer that left no doubt, this one included
    generation: int
    bodies: list[bytes]
    sent: int
    left: int = 0  # records of the batch that are not sent this time
    paused: str = ""  # the kind of the pause that this is the probe of
    asked_at_s: float = 0  # by the process's own clock, just before it was admitted
    exchange: RequestStats | None = None  # None before its request, and where none was made


@dataclass(frozen=True, slots=True)
class Rejection:
    """An attempt may not be sent; see `batch_begin.lua` for the reasons."""

    reason: Literal["gone", "unloaded", "held", "paused", "wait", "slot", "empty"]
    wait_s: float = 0
