"""How a log record is written: one line of text, or one object of JSON a line.

An event of ours is a word in snake case with fields. Only fields of `FIELDS` are written:
ids of batches and erasures, numbers, names of errors. So no subject's id, no property and
no key can get out, whoever adds an `extra`. Of an exception its type and its places in the
code are written, and its text only where it is ours: that of a database or of Redis may
quote what it was given. What other libraries log is cut to what names no argument.

A host gives `formatter()` to a handler of its own; see docs/logs.md.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mm_tasks.errors import MMTasksError
from mm_tasks.timestamps import stamp_s

if TYPE_CHECKING:
    from mm_tasks.settings import LogFormat

FIELDS = frozenset(
    {
        "at",
        "attempt",
        "batch_id",
        "entry",
        "erasure",
        "errno",
        "error",
        "events",
        "guards",
        "head",
        "kind",
        "lines",
        "outcome",
        "percent",
        "reason",
        "size",
        "state",
        "task",
        "wait_s",
        "why",
    }
)
# As Celery's own.
LAYOUT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"

_EVENT = re.compile(r"[a-z][a-z0-9_]*")
# Of a message that tells its fields to those whose formatter shows no `extra`.
_TOLD = re.compile(r"[a-z][a-z0-9_]*( [a-z_]+=\S*)*")
# Of the text that Celery made of an exception, a retry or a result: what comes before a value.
_NAME = re.compile(r"[\w. ]*")
_OF_CALLERS = {"exc", "return_value"}


def formatter(form: LogFormat = "text", layout: str = LAYOUT) -> logging.Formatter:
    """Return a formatter for any handler; `layout` is logging's own, of text alone."""
    return _Json() if form == "json" else _Text(layout)


class _Text(logging.Formatter):
    """A line as the layout has it, then ` name=value` for each field, then a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(vars(record))
        message = _message(record)
        told = {part.partition("=")[0] for part in message.split(" ") if "=" in part}
        fields = [f"{k}={_plain(v)}" for k, v in _fields(record).items() if k not in told]
        shown.msg, shown.args, shown.exc_text = " ".join([message, *fields]), (), None
        shown.stack_info = None
        return super().format(shown)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's
        return _traceback(ei[1], ei[2])


class _Json(logging.Formatter):
    """An object with `time`, `level`, `logger`, `event` or `message`, and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": stamp_s(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
        }
        message = _message(record)
        event = _EVENT.match(message) if _is_ours(record) else None
        if event:
            line["event"] = event.group()
        if not event or not _TOLD.fullmatch(message):
            line["message"] = message
        line |= _fields(record)
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = type(record.exc_info[1]).__name__
            line["traceback"] = _traceback(*record.exc_info[1:])
        return json.dumps(line)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.split(".")[0] == "mm_tasks"


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    if not _is_ours(record):
        return {}
    return {name: _value(value) for name, value in vars(record).items() if name in FIELDS}


def _value(value: object) -> object:
    simple = value is None or isinstance(value, str | int | float)
    return value if simple else type(value).__name__


def _plain(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and not set(text) & {" ", '"', "="}
    return text if is_plain and text else json.dumps(text)


def _message(record: logging.LogRecord) -> str:
    """Return what is said, without a value that a caller gave.

    Ours names none. Of others the first line: Celery quotes messages in those after it.
    """
    template = str(record.msg)
    if _is_ours(record):
        return record.getMessage()
    if record.levelno <= logging.DEBUG:
        return _first_line(template)  # whose arguments may be those of a task
    args: Any = record.args
    if isinstance(args, Mapping):
        args = {k: _name(v) if k in _OF_CALLERS else _value(v) for k, v in args.items()}
    elif args:
        args = tuple(type(v).__name__ if isinstance(v, BaseException) else v for v in args)
    try:
        return _first_line(template % args if args else template)
    except (TypeError, ValueError, KeyError):
        return _first_line(template)


def _name(text: object) -> str:
    found = _NAME.match(str(text))
    return found.group() if found else ""


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _traceback(error: BaseException | None, places: Any) -> str:
    """Return what Python prints of an exception and those before it, but their texts."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        said = f": {error}" if isinstance(error, MMTasksError) else ""
        lines = "".join(traceback.format_tb(places))
        parts.append(f"Traceback (most recent call last):\n{lines}{type(error).__name__}{said}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        places = error.__traceback__ if error is not None else None
    return "\n\nwhich came after:\n\n".join(parts)
