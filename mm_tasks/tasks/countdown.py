"""`countdown` and `eta` of a call, checked and turned into a duration.

An `eta` is an instant of the caller's clock, so it is compared with the caller's clock and with no
other. What is stored is due that much later on the clock of the store.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mm_tasks.errors import InvalidEvent, Problem

if TYPE_CHECKING:
    from collections.abc import Mapping

COUNTDOWN_MAX_S = 366 * 86_400
OPTIONS = frozenset({"countdown", "eta"})

_TOO_FAR = f"must be at most {COUNTDOWN_MAX_S} seconds from now"


def is_scheduled(options: Mapping[str, Any]) -> bool:
    """Return whether a call has a countdown or an eta, and no option that needs the broker."""
    given = {name for name, value in options.items() if value is not None}
    return bool(given) and given <= OPTIONS


def delay_s(options: Mapping[str, Any], now: datetime) -> float:
    """Return in how many seconds a call is due; 0 if that has passed.

    `now` is the caller's clock. An `eta` is a datetime or ISO 8601 text, in UTC if it is naive.
    Raises `InvalidEvent`.
    """
    countdown, eta = options.get("countdown"), options.get("eta")
    if countdown is not None and eta is not None:
        raise InvalidEvent([Problem("eta", "cannot be combined with countdown")])
    name, delay = ("countdown", _seconds(countdown)) if eta is None else ("eta", _until(eta, now))
    if delay > COUNTDOWN_MAX_S:
        raise InvalidEvent([Problem(name, _TOO_FAR)])
    return max(0.0, delay)


def _seconds(countdown: object) -> float:
    if isinstance(countdown, float) and math.isfinite(countdown):
        return countdown
    if isinstance(countdown, int) and not isinstance(countdown, bool):
        # No float holds an integer of any size.
        return float(max(-1, min(countdown, COUNTDOWN_MAX_S + 1)))
    raise InvalidEvent([Problem("countdown", "must be a finite number of seconds")])


def _until(eta: object, now: datetime) -> float:
    try:
        at = datetime.fromisoformat(eta) if isinstance(eta, str) else eta
        if isinstance(at, datetime):
            at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
            return (at - now).total_seconds()
    except Exception:  # noqa: BLE001, S110 - a tzinfo of the caller's raises anything
        pass
    raise InvalidEvent([Problem("eta", "must be a datetime, or ISO 8601 text")])
