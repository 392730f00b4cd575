"""Formatters of log records: a line of text, or a JSON object a line.

An event of ours is a word in snake case with fields. Only `FIELDS` are written: ids of
batches and erasures, numbers, names of errors. So no `extra` can put a subject's id, a
property or a key into a log. An exception is written with its type and traceback, and with
its text only if the class is ours: the text of a database or of Redis may quote its input.
Messages of other libraries are cut before any argument.

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
        *("attempt", "batch_id", "events", "outcome", "task", "wait_s"),
        *("at", "entry", "erasure", "guards", "head", "lines", "percent", "size", "state"),
        *("errno", "error", "kind", "project", "reason", "why"),
    }
)
# As Celery's own.
LAYOUT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"

_EVENT = re.compile(r"[a-z][a-z0-9_]*")
# Matches a message that already contains its fields as `key=value`.
_WITH_FIELDS = re.compile(r"[a-z][a-z0-9_]*( [a-z_]+=\S*)*")
# Matches the rest of Celery's text of an exception, a retry or a result, from the first value on.
_VALUES = re.compile(r"[^\w. ].*", re.DOTALL)
_OF_CALLERS = {"exc", "return_value"}


def formatter(form: LogFormat = "text", layout: str = LAYOUT) -> logging.Formatter:
    """Return a formatter for any handler; `layout` is logging's own, used for text only."""
    return _JsonFormatter() if form == "json" else _TextFormatter(layout)


class _TextFormatter(logging.Formatter):
    """A line in the layout, then ` name=value` for each field, then a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        shown = logging.makeLogRecord(vars(record))
        message = _message(record)
        written = {part.partition("=")[0] for part in message.split(" ") if "=" in part}
        fields = [f"{k}={_plain(v)}" for k, v in _fields(record).items() if k not in written]
        shown.msg, shown.args, shown.exc_text = " ".join([message, *fields]), (), None
        shown.stack_info = None
        return super().format(shown)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's
        return _traceback(ei[1], ei[2])


class _JsonFormatter(logging.Formatter):
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
        if not event or not _WITH_FIELDS.fullmatch(message):
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
    is_simple = value is None or isinstance(value, str | int | float)
    return value if is_simple else type(value).__name__


def _plain(value: object) -> str:
    text = str(value)
    is_plain = text.isprintable() and not set(text) & {" ", '"', "="}
    return text if is_plain and text else json.dumps(text)


def _message(record: logging.LogRecord) -> str:
    """Return the message without any value of a caller.

    Our messages hold none. Other libraries' are cut to the first line: Celery quotes whole
    task messages in the lines after it.
    """
    template = str(record.msg)
    if _is_ours(record):
        return record.getMessage()
    if record.levelno <= logging.DEBUG:
        return _first_line(template)  # its arguments may be those of a task
    args: Any = record.args
    if isinstance(args, Mapping):
        args = {
            k: _VALUES.sub("", str(v)) if k in _OF_CALLERS else _value(v) for k, v in args.items()
        }
    elif args:
        args = tuple(type(v).__name__ if isinstance(v, BaseException) else v for v in args)
    try:
        return _first_line(template % args if args else template)
    except (TypeError, ValueError, KeyError):
        return _first_line(template)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0].strip() if lines else ""


def _traceback(error: BaseException | None, places: Any) -> str:
    """Return the traceback of an exception and its causes, without texts that are not ours."""
    parts: list[str] = []
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        text = f": {error}" if isinstance(error, MMTasksError) else ""
        lines = "".join(traceback.format_tb(places))
        parts.append(f"Traceback (most recent call last):\n{lines}{type(error).__name__}{text}")
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        places = error.__traceback__ if error is not None else None
    return "\n\nwhich came after:\n\n".join(parts)
