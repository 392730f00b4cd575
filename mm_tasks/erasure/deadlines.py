"""The deadline of an erasure, and its first call. Pure: the caller brings the time."""

from __future__ import annotations

import calendar
from datetime import UTC, datetime, timedelta

# The workflow logs a warning at these parts of the time allowed, in percent.
MARKS = (50, 80, 100)
# The longest wait between two calls that the vendor does not acknowledge.
BLOCKED_MAX = timedelta(days=1)


def one_month_after(received_at: datetime) -> datetime:
    """Return the same day and time of the next month, in UTC; else that month's last day.

    GDPR art. 12(3): "within one month of receipt of the request".
    """
    start = received_at.astimezone(UTC)
    year, month = divmod(start.year * 12 + start.month, 12)
    last = calendar.monthrange(year, month + 1)[1]
    return start.replace(year=year, month=month + 1, day=min(start.day, last))


def mark(received_at: datetime, due_at: datetime, now: datetime) -> int:
    """Return the highest of `MARKS` that `now` has reached, or 0."""
    # Not in days: months differ in length.
    passed, allowed = now - received_at, due_at - received_at
    return max((percent for percent in MARKS if passed * 100 >= allowed * percent), default=0)


def first_call_at(quiesced_at: datetime, pass_s: float, call_after: datetime | None) -> datetime:
    """Return when the first pass is due: `pass_s` after quiesce, and not before `call_after`."""
    planned = quiesced_at + timedelta(seconds=pass_s)
    return planned if call_after is None else max(planned, call_after)
