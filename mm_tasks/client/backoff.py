"""How long to wait after a failure or a 429, and the loop that records a result with retries."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

BACKOFF_MAX_S = 60.0
# "clamped to 1 s … 15 min": a shorter or longer request of the vendor is not obeyed.
THROTTLE_MIN_S = 1.0
THROTTLE_MAX_S = 900.0


def random_s(below: float) -> float:
    """Return a random number of seconds in [0, `below`): the jitter of a wait."""
    return random.uniform(0, below)  # noqa: S311 - jitter, no secret


def backoff_s(
    attempt: int, random_s: Callable[[float], float], max_s: float = BACKOFF_MAX_S
) -> float:
    """Return a wait with full jitter: anything up to 1, 2, 4 … 60 s, or `max_s`.

    `random_s(x)` returns a number in [0, x). See "Exponential Backoff And
    Jitter" of the AWS Architecture Blog for why the whole range is random.
    """
    return random_s(_doubled_s(attempt, max_s))


def throttle_s(
    retry_after_s: float | None, attempt: int, random_s: Callable[[float], float]
) -> float:
    """Return how long to obey a 429: the requested wait, clamped, and up to a tenth more.

    Without a usable request: 1, 2, 4 … 60 s.
    """
    wait_s = _doubled_s(attempt, BACKOFF_MAX_S) if retry_after_s is None else retry_after_s
    wait_s = min(THROTTLE_MAX_S, max(THROTTLE_MIN_S, wait_s))
    return min(THROTTLE_MAX_S, wait_s + random_s(wait_s / 10))


def record_with_retry(
    record: Callable[[], T], errors: tuple[type[Exception], ...], within_s: float
) -> T:
    """Return the result of `record`; repeat it with jitter while it raises one of `errors`.

    An error of a try that began after `within_s` seconds is raised: a process that was stopped
    during a try makes another one. `record` must be safe to repeat.
    """
    ends_at, wait_s = time.monotonic() + within_s, 0.05
    while True:
        began_at = time.monotonic()
        try:
            return record()
        except errors:
            if began_at > ends_at:
                raise
        time.sleep(wait_s / 2 + random_s(wait_s / 2))
        wait_s = min(1.0, 2 * wait_s)


def _doubled_s(attempt: int, max_s: float) -> float:
    return min(max_s, 2.0 ** min(attempt - 1, 16))
