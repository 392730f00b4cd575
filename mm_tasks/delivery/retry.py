"""What follows an outcome: for the batch, and for the project. Pure.

Two questions, each an exhaustive match: `decide` says what happens to the
batch, `signal` what all workers should know. `random_s` is an argument, so
that a test can be exact.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, assert_never

from mm_tasks.client.backoff import backoff_s, throttle_s
from mm_tasks.client.outcome import (
    NAMES,
    Ambiguous,
    Delivered,
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

# "at least 20 single events refused and none accepted": the vendor changed its rules.
ISOLATION_MAX = 20
REJECTED, UNAVAILABLE = "rejected", "unavailable"
# This many requests in a row without an answer make the project probe instead.
FAILURES_MAX = 5


class AttemptState(Protocol):
    """What the decisions need to know of an attempt; see `buffer.Admitted`."""

    @property
    def attempt(self) -> int: ...  # noqa: D102 - the number, the first is 1
    @property
    def in_a_row(self) -> int: ...  # noqa: D102 - since the last answer that left no doubt
    @property
    def paused(self) -> str: ...  # noqa: D102 - the kind of the pause it is the probe of, or ""
    @property
    def is_alone(self) -> bool: ...  # noqa: D102 - others passed where its batch was refused


@dataclass(frozen=True, slots=True)
class Ack:
    """The vendor has it."""

    count: int | None


@dataclass(frozen=True, slots=True)
class Retry:
    """Send it again, not before `wait_s`. `ambiguous` names the doubt, '' if there is none."""

    wait_s: float
    outcome: str
    ambiguous: str = ""


@dataclass(frozen=True, slots=True)
class Narrow:
    """Something in it is refused: find out what. `why` becomes that of a dead letter."""

    kind: str
    answer: Response
    why: str
    isolation_max: int


@dataclass(frozen=True, slots=True)
class Bury:
    """A person must decide. `why` is one line of JSON without personal data."""

    why: str
    outcome: str
    ambiguous: str = ""


@dataclass(frozen=True, slots=True)
class Pause:
    """Sending is of no use for anybody; `failures_max` 0 pauses at once."""

    kind: str
    answer: Response
    failures_max: int = 0


@dataclass(frozen=True, slots=True)
class Throttle:
    """The vendor asked all of us to wait."""

    wait_s: float


Decision = Ack | Retry | Narrow | Bury
Signal = Pause | Throttle | None


def decide(  # noqa: PLR0911 - a row of the table each
    outcome: Outcome, attempt: AttemptState, *, park: bool, random_s: Callable[[float], float]
) -> Decision:
    """Say what happens to a batch after an attempt."""
    match outcome:
        case Delivered(count=count):
            return Ack(count)
        case Rejected() if attempt.paused == REJECTED:
            return Retry(0, REJECTED)  # the vendor still refuses: bury nothing
        case Rejected(answer=answer):
            return _narrow(outcome, answer, attempt, 0 if attempt.is_alone else ISOLATION_MAX)
        case Unauthorized(answer=answer) | Misdirected(answer=answer) if _is_its_own(attempt):
            return _narrow(outcome, answer, attempt, ISOLATION_MAX)
        case Ambiguous(kind=kind, status=status, code=code):
            if park:
                why = _why("ambiguous", Response(status or 0, code), attempt.attempt, kind)
                return Bury(why, "ambiguous", kind)
            return Retry(backoff_s(attempt.in_a_row, random_s), "ambiguous", kind)
        case Unavailable():
            return Retry(backoff_s(attempt.in_a_row, random_s), "unavailable")
        case Throttled() | Unauthorized() | Misdirected():
            # Not sent again before the wait or the pause of the project is over.
            return Retry(0, NAMES[type(outcome)])
        case _:
            assert_never(outcome)


def signal(  # noqa: PLR0911 - a row of the table each
    outcome: Outcome, attempt: AttemptState, random_s: Callable[[float], float]
) -> Signal:
    """Say what the whole project should know of this outcome."""
    match outcome:
        case Rejected(answer=answer) if attempt.paused == REJECTED:
            return Pause(REJECTED, answer)
        case Delivered() | Rejected():
            return None
        case Throttled(retry_after_s=asked):
            return Throttle(throttle_s(asked, attempt.in_a_row, random_s))
        case Unauthorized() | Misdirected() if _is_its_own(attempt):
            return None
        case Unauthorized(answer=answer) | Misdirected(answer=answer):
            return Pause(NAMES[type(outcome)], answer)
        case Unavailable(kind=kind):
            return Pause(UNAVAILABLE, Response(0, kind), FAILURES_MAX)
        case Ambiguous(kind=kind, status=status, code=code):
            return Pause(
                UNAVAILABLE, Response(status or 0, code if code != "-" else kind), FAILURES_MAX
            )
        case _:
            assert_never(outcome)


def lifts(paused: str, outcome: Outcome) -> bool:
    """Say whether this outcome of its probe ends a pause of the kind `paused`.

    A pause for a key or a host ends with any answer other than 401, 403 and their like,
    a 5xx included: the key was not what it complained of. An outage ends with an answer
    that leaves no doubt; refusals of everything with a success alone.
    """
    match outcome:
        case Delivered():
            return paused != ""
        case Rejected() | Throttled():
            return paused not in {"", REJECTED}
        case Ambiguous(status=status):
            return paused in {"unauthorized", "misdirected"} and status is not None
        case Unauthorized() | Misdirected() | Unavailable():
            return False
        case _:
            assert_never(outcome)


def _is_its_own(attempt: AttemptState) -> bool:
    """Say whether a refusal is this batch's own fault: others pass, and nothing is paused."""
    return attempt.is_alone and not attempt.paused


def _narrow(
    outcome: Outcome, answer: Response, attempt: AttemptState, isolation_max: int
) -> Narrow:
    name = NAMES[type(outcome)]
    return Narrow(name, answer, _why(name, answer, attempt.attempt), isolation_max)


def _why(reason: str, answer: Response, attempt: int, kind: str = "") -> str:
    why = {"reason": reason, "status": answer.status, "code": answer.code, "attempts": attempt}
    return json.dumps(why | ({"kind": kind} if kind else {}), separators=(",", ":"))
