"""Times as the audit store writes them, and the deadline of an erasure.

A stamp is UTC, `YYYY-MM-DDTHH:MM:SS.mmmZ`: 24 characters, so that the order of
stamps as text is their order in time, in every database and in the log.

Pure: no clock. Whoever calls brings the time.
"""

from __future__ import annotations

import calendar
import re
from datetime import UTC, datetime

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)
# At these parts of the time allowed, in percent, someone has to be told.
MARKS = (50, 80, 100)


def stamp(moment: datetime) -> str:
    """Return a moment as text; what is below a millisecond is cut off."""
    assert moment.tzinfo is not None, "a naive time means another moment on another host"
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return f"{text}Z"


def moment(text: str) -> datetime:
    """Return the moment of a stamp."""
    return datetime.fromisoformat(text)


def one_month_after(received_at: datetime) -> datetime:
    """Return the same day and time of the next month, in UTC; else that month's last day.

    GDPR art. 12(3): "within one month of receipt of the request".
    """
    start = received_at.astimezone(UTC)
    year, month = divmod(start.year * 12 + start.month, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return start.replace(year=year, month=month + 1, day=min(start.day, last))


def mark(received_at: datetime, due_at: datetime, now: datetime) -> int:
    """Return the highest of `MARKS` that was reached, or 0."""
    # In parts of the time allowed, not in days: a month is not always as long.
    passed, allowed = now - received_at, due_at - received_at
    return max((one for one in MARKS if passed * 100 >= allowed * one), default=0)
