"""The decisions after an outcome, for the batch and for the project. Pure.

Two questions, each an exhaustive match: `decide` returns the next step of the batch, `signal`
the change that concerns all workers. `random_s` is an argument, so that a test can be exact.
See the table *Outcomes* in `docs/architecture.md`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from mm_tasks.client.backoff import backoff_s, throttle_s
from mm_tasks.client.outcome import (
    NAMES,
    Ambiguous,
    Delivered,
    Filtered,
    Misdirected,
    Outcome,
    Rejected,
    Response,
    Throttled,
    Unauthorized,
    Unavailable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.buffer.attempt import Admitted

# "at least 20 single events refused and none accepted": the vendor changed its rules.
ISOLATION_MAX = 20
REJECTED, FILTERED, UNAVAILABLE = "rejected", "filtered", "unavailable"
# This many requests in a row without an answer make the project probe instead.
FAILURES_MAX = 5
# This many requests in a row refused by a filter, and none delivered: it refuses everything.
FILTERED_MAX = 3


@dataclass(frozen=True, slots=True)
class Ack:
    """The vendor has stored the events."""

    count: int | None


@dataclass(frozen=True, slots=True)
class Retry:
    """Send the batch again, not before `wait_s`. `ambiguous` is the kind of doubt, or ''."""

    wait_s: float
    outcome: str
    ambiguous: str = ""


@dataclass(frozen=True, slots=True)
class Bisect:
    """An event of the batch is refused: find it. `why` becomes the reason of a dead letter."""

    kind: str
    answer: Response
    why: str


@dataclass(frozen=True, slots=True)
class Bury:
    """A person must decide. `why` is one line of JSON without personal data."""

    why: str
    outcome: str
    ambiguous: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """No request can succeed now. `failures_max` in a row pause; 0 pauses at once."""

    kind: str
    answer: Response
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class Throttle:
    """The vendor asked all workers to wait."""

    wait_s: float


Decision = Ack | Retry | Bisect | Bury
Signal = Pause | Throttle | None


def decide(  # noqa: PLR0911 - a row of the table each
    outcome: Outcome, attempt: Admitted, *, park: bool, random_s: Callable[[float], float]
) -> Decision:
    """Return the next step of a batch after an attempt."""
    name = NAMES[type(outcome)]
    match outcome:
        case Delivered(count=count):
            return Ack(count)
        case Rejected() if attempt.paused == REJECTED:
            return Retry(0, name)  # the vendor still refuses: bury nothing
        case Rejected(answer=answer) | Filtered(answer=answer):
            return Bisect(name, answer, _why(name, answer, attempt))
        case Ambiguous(kind=kind, status=status, code=code) if park:
            return Bury(_why(name, Response(status or 0, code), attempt, kind=kind), name, kind)
        case Ambiguous(kind=kind):
            return Retry(backoff_s(attempt.in_a_row, random_s), name, kind)
        case Unavailable():
            return Retry(backoff_s(attempt.in_a_row, random_s), name)
        case Throttled() | Unauthorized() | Misdirected():
            # Not sent again before the wait or the pause of the project is over.
            return Retry(0, name)
        case _:
            assert_never(outcome)


def signal(outcome: Outcome, attempt: Admitted, random_s: Callable[[float], float]) -> Signal:
    """Return the change of the whole project after an outcome.

    Batches of `Filtered` and `Rejected` pause their endpoint when bisecting shows that everything
    is refused: see `delivery/settle`.
    """
    match outcome:
        case Rejected(answer=answer) if attempt.paused == REJECTED:
            return Pause(REJECTED, answer)
        case Delivered() | Rejected() | Filtered():
            return None
        case Throttled(retry_after_s=retry_after_s):
            return Throttle(throttle_s(retry_after_s, attempt.in_a_row, random_s))
        case Unauthorized(answer=answer) | Misdirected(answer=answer):
            return Pause(NAMES[type(outcome)], answer)
        case Unavailable(kind=kind):
            return Pause(UNAVAILABLE, Response(0, kind), FAILURES_MAX)
        case Ambiguous(kind=kind, status=status, code=code):
            shown = Response(status or 0, code if code != "-" else kind)
            return Pause(UNAVAILABLE, shown, FAILURES_MAX)
        case _:
            assert_never(outcome)


def lifts(paused: str, outcome: Outcome) -> bool:
    """Return whether this outcome of a probe ends a pause of the kind `paused`.

    A pause for a key or a host ends with any answer of the vendor other than 401, 403 and 3xx,
    a 5xx included. An outage, and a filter that refused everything, end with an answer that
    leaves no doubt. A vendor that refused everything ends it with a success only.
    """
    match outcome:
        case Delivered():
            return paused != ""
        case Rejected() | Throttled():
            return paused not in {"", REJECTED}
        case Ambiguous(status=status):
            return paused in {"unauthorized", "misdirected"} and status is not None
        case Unauthorized() | Misdirected() | Filtered() | Unavailable():
            return False
        case _:
            assert_never(outcome)


def _why(reason: str, answer: Response, attempt: Admitted, **doubt: str) -> str:
    why = {
        "reason": reason,
        "status": answer.status,
        "code": answer.code,
        "attempts": attempt.attempt,
        **doubt,
    }
    return json.dumps(why, separators=(",", ":"))
