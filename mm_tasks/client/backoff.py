"""How long to wait: after a failure, and after a 429. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

BACKOFF_FIRST_S = 1.0
BACKOFF_MAX_S = 60.0
# "clamped to 1 s … 15 min": a vendor that asks for less or more is not obeyed to the letter.
THROTTLE_MIN_S = 1.0
THROTTLE_MAX_S = 900.0


def backoff_s(
    attempt: int, random_s: Callable[[float], float], max_s: float = BACKOFF_MAX_S
) -> float:
    """Return a wait with full jitter: anything up to 1, 2, 4 … 60 s, or `max_s`.

    `random_s(x)` returns a number in [0, x). See "Exponential Backoff And
    Jitter" of the AWS Architecture Blog for why the whole range is random.
    """
    return random_s(min(max_s, BACKOFF_FIRST_S * 2 ** min(attempt - 1, 16)))


def throttle_s(
    retry_after_s: float | None, attempt: int, random_s: Callable[[float], float]
) -> float:
    """Return how long to obey a 429: what it asked for, clamped, and up to a tenth more.

    Where it asked for nothing usable: 1, 2, 4 … 60 s.
    """
    guess = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2 ** min(attempt - 1, 16))
    asked = guess if retry_after_s is None else retry_after_s
    wait = min(THROTTLE_MAX_S, max(THROTTLE_MIN_S, asked))
    return min(THROTTLE_MAX_S, wait + random_s(wait / 10))
