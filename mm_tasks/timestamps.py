"""Times as the audit store writes them, and the deadline of an erasure.

A stamp is UTC, `YYYY-MM-DDTHH:MM:SS.mmmZ`: 24 characters, so that the order of
stamps as text is their order in time, in every database and in the log.

Pure: no clock. Whoever calls brings the time.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

STAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", re.ASCII)


def stamp(moment: datetime) -> str:
    """Return a moment as text; what is below a millisecond is cut off."""
    assert moment.tzinfo is not None, "a naive time means another moment on another host"
    text = moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="milliseconds")
    return f"{text}Z"


def moment(text: str) -> datetime:
    """Return the moment of a stamp."""
    return datetime.fromisoformat(text)
