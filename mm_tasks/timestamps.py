"""Instants as text: UTC, `YYYY-MM-DDTHH:MM:SS.mmmZ`, the form of the vendor and of our own records.

All stamps have 24 characters, so their order as text is their order in time, in every
database and in the log.
"""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from functools import lru_cache

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


def stamp(moment: datetime) -> str:
    """Return an aware datetime as text, truncated to milliseconds.

    Raises `OverflowError` if its year in UTC is before 1 or after 9999.
    """
    assert moment.tzinfo is not None, "a naive time means another moment on another host"
    # Without microseconds and offset: the first 23 characters of each such text.
    return f"{moment.astimezone(UTC).isoformat(timespec='milliseconds')[:23]}Z"


def stamp_s(at_s: float) -> str:
    """Return a Unix time in seconds as text."""
    return stamp(datetime.fromtimestamp(at_s, UTC))


def now() -> str:
    """Return the current time as text."""
    # Each event has one: three times as fast as `stamp`.
    ms = time.time_ns() // 1_000_000
    return f"{_second(ms // 1000)}.{str(ms)[-3:]}Z"


@lru_cache(maxsize=2)
def _second(at_s: int) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def moment(text: str) -> datetime:
    """Return the moment of a stamp."""
    return datetime.fromisoformat(text)
