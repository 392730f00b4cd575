"""Log lines, as text or as JSON, with the fields of `extra` that may be shown, and no others.

A log outlives an erasure, so what is written is a whitelist: ids of batches and erasures, numbers,
names of outcomes and errors. Of an exception there are its type and where it came from; its
message only where it is ours (`MMTasksError`), since one of Redis or of a database may quote what
it was given.

For our Celery app the setting MM_TASKS_LOG_FORMAT chooses. A host that configures logging itself
gives `formatter("json")` to a handler of its own.
"""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

from mm_tasks.errors import MMTasksError

# Keys of `extra`. A test demands that no other is used in this package.
FIELDS = (
    "attempt",
    "batch_id",
    "erasure",
    "errno",
    "error",
    "events",
    "guards",
    "kind",
    "lines",
    "outcome",
    "percent",
    "reason",
    "state",
    "task",
    "wait_s",
    "why",
)
PLAIN = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"

_Info = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def formatter(kind: str, pattern: str = PLAIN) -> logging.Formatter:
    """Return the formatter of `text` or `json`; the pattern is that of logging, for text."""
    return JsonLines() if kind == "json" else TextLines(pattern)


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return what a record has of the fields that may be shown."""
    return {name: vars(record)[name] for name in FIELDS if name in vars(record)}


class _Discreet(logging.Formatter):
    def formatException(self, ei: _Info) -> str:  # noqa: N802 - logging's name
        """Return where it came from and what it was, without what it was given."""
        return "\n".join((*_frames(ei[2]), _said(ei[1])))

    def format(self, record: logging.LogRecord) -> str:
        # Another handler may have kept its own text of the exception.
        record.exc_text = None
        try:
            return self._line(record)
        finally:
            record.exc_text = None

    def _line(self, record: logging.LogRecord) -> str:
        return super().format(record)


class TextLines(_Discreet):
    """Logging's pattern, then each field as `name=value`."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line without its exception."""
        shown = "".join(f" {name}={value}" for name, value in fields_of(record).items())
        return super().formatMessage(record) + shown


class JsonLines(_Discreet):
    """One object a line: `at` (UTC, ms), `level`, `logger`, `process`, `event`, and the fields.

    An exception adds `exception` (its type, and its message if it is ours) and `trace`.
    """

    def _line(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC)
        line = {
            "at": f"{at:%Y-%m-%dT%H:%M:%S}.{at.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "process": record.process,
            "event": record.getMessage(),
            **fields_of(record),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line |= {
                "exception": _said(record.exc_info[1]),
                "trace": _frames(record.exc_info[2]),
            }
        return json.dumps(line, default=str)


def _said(error: BaseException | None) -> str:
    name = type(error).__name__
    return f"{name}: {error}" if isinstance(error, MMTasksError) else name


def _frames(trace: TracebackType | None) -> list[str]:
    found = traceback.extract_tb(trace)
    return [f"{one.filename}:{one.lineno} in {one.name}" for one in found]
