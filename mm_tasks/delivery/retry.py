"""The decisions after an outcome, for the batch and for the project. Pure.

Two questions, each an exhaustive match: `decide` returns the next step of the batch, `signal`
the change that concerns all workers. `random_s` is an argument, so that a test can be exact.
See the table *Outcomes* in `docs/architecture.md`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple, assert_never

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

    from mm_tasks.buffer.batches import Admitted

# "at least 20 single events refused and none accepted": the vendor changed its rules.
ISOLATION_MAX = 20
REJECTED, UNAVAILABLE = "rejected", "unavailable"
# This many requests in a row without an answer make the project probe instead.
FAILURES_MAX = 5
# This many requests in a row refused by a filter, and none delivered: it refuses everything.
FILTERED_MAX = 3


class Ack(NamedTuple):
    """The vendor has stored the events; `stored` is its count, None if it gave none."""

    stored: int | None


class Retry(NamedTuple):
    """Send the batch again, not before `wait_s`."""

    wait_s: float


class Bisect(NamedTuple):
    """An event of the batch is refused: find it. `why` becomes the reason of a dead letter."""

    answer: Response
    why: str


class Bury(NamedTuple):
    """A person must decide. `why` is one line of JSON without personal data."""

    why: str


class Pause(NamedTuple):
    """No request can succeed now. `failures_max` in a row pause; 0 pauses at once."""

    kind: str
    answer: Response
    failures_max: int = 0


class Throttle(NamedTuple):
    """The vendor asked all workers to wait."""

    wait_s: float


def decide(
    outcome: Outcome, attempt: Admitted, *, park: bool, random_s: Callable[[float], float]
) -> Ack | Retry | Bisect | Bury:
    """Return the next step of a batch after an attempt."""
    match outcome:
        case Delivered(count=count):
            return Ack(count)
        case Rejected() if attempt.paused == REJECTED:
            return Retry(0)  # the vendor still refuses: bury nothing
        case Rejected(answer=answer) | Filtered(answer=answer):
            return Bisect(answer, _why(outcome, answer, attempt))
        case Ambiguous(kind=kind, status=status, code=code) if park:
            return Bury(_why(outcome, Response(status or 0, code), attempt, kind=kind))
        case Ambiguous() | Unavailable():
            return Retry(backoff_s(attempt.in_a_row, random_s))
        case Throttled() | Unauthorized() | Misdirected():
            # Not sent again before the wait or the pause of the project is over.
            return Retry(0)
        case _:
            assert_never(outcome)


def signal(
    outcome: Outcome, attempt: Admitted, random_s: Callable[[float], float]
) -> Pause | Throttle | None:
    """Return the change of the whole project after an outcome.

    Batches of `Filtered` and `Rejected` pause their endpoint when bisecting shows that everything
    is refused: see `delivery/settle`.
    """
    match outcome:
        case Rejected(answer=answer) if attempt.paused == REJECTED:
            return Pause(REJECTED, answer)
        case Delivered() | Rejected() | Filtered() | Ambiguous(kind="lease"):
            return None  # that a worker died shows nothing about the vendor
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


def _why(outcome: Outcome, answer: Response, attempt: Admitted, **doubt: str) -> str:
    about = {"status": answer.status, "code": answer.code, "attempts": attempt.attempt}
    why = {"reason": NAMES[type(outcome)], **about, **doubt}
    return json.dumps(why, separators=(",", ":"))
