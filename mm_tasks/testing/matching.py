"""Does a record have these fields, and if not, what is different; all of it in words.

Pure. A subset is enough: fields and keys that are not asked for may be there or not. Within
lists every place counts. The words hold the values of what was asked for and of nothing else:
they end in a log that many read, and tests are written with real data too.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime
from difflib import SequenceMatcher
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from mm_tasks.events.properties import InvalidValue, instant

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from mm_tasks.testing.records import Recorded

_SHOWN_MAX = 20
_VALUE_CHARACTERS = 120
_HIDDEN = "…"
# Made up at each call, so of no interest unless asked for.
_MADE_UP = ("event_id", "timestamp")
# Of a call through the broker; the other options are Celery's own, or hold other calls.
_OPTIONS_SHOWN = ("countdown", "eta", "expires", "queue")


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a record is not as expected."""

    path: str
    expected: Any
    found: Any


def plain(value: Any) -> Any:
    """Return a value as it is in a record: see `properties` for what becomes what.

    What no property may hold stays, such as `unittest.mock.ANY`.
    """
    match value:
        case Enum():
            return plain(value.value)
        case dict():
            return {key: plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case _:
            return _plain_text(value)


def _plain_text(value: Any) -> Any:
    match value:
        case datetime():
            try:
                return instant(value)
            except InvalidValue:
                return value
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
        case _:
            return value


def differences(expected: Mapping[str, Any], fields: Mapping[str, Any]) -> list[Difference]:
    """Return where `fields` are not as expected. A field of None is expected not to be there."""
    return [
        found
        for name, value in expected.items()
        for found in _between(
            plain(value), fields.get(name, None if value is None else _ABSENT), name
        )
    ]


def _between(expected: Any, found: Any, path: str) -> Iterator[Difference]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            yield from _between(value, found.get(key, _ABSENT), f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, (one, other) in enumerate(zip(expected, found, strict=True)):
            yield from _between(one, other, f"{path}[{place}]")
    elif expected != found or _is_bool_for_number(expected, found):
        yield Difference(path, expected, found)


def _is_bool_for_number(one: object, other: object) -> bool:
    """Say whether Python calls them equal and JSON does not: True is 1."""
    kinds = {type(one), type(other)}
    return bool in kinds and bool(kinds & {int, float})


def nearest(expected: Mapping[str, Any], records: Sequence[Recorded]) -> Recorded | None:
    """Return the record that comes closest: by its name first, then by what is different."""
    wanted = str(plain(expected.get("event")))

    def distance(record: Recorded) -> tuple[float, int]:
        likeness = SequenceMatcher(None, wanted, str(record.event)).ratio()
        is_named = "event" in expected
        return (-likeness if is_named else 0, len(differences(expected, record.fields)))

    return min(records, key=distance, default=None)


def difference_lines(expected: Mapping[str, Any], record: Recorded) -> list[str]:
    """Return one line for each difference."""
    found = differences(expected, record.fields)
    width = max((len(one.path) for one in found), default=0)
    return [
        f"    {one.path:<{width}}  expected {_shown(one.expected)}, recorded {_shown(one.found)}"
        for one in found
    ]


def lines(records: Sequence[Recorded], expected: Mapping[str, Any]) -> list[str]:
    """Return a line for each record, numbered."""
    more = len(records) - _SHOWN_MAX
    shown = [
        f"    {number}. {_line(record, expected)}"
        for number, record in enumerate(records[:_SHOWN_MAX], 1)
    ]
    return [*shown, f"    and {more} more"] if more > 0 else shown


def call(lane: str, expected: Mapping[str, Any]) -> str:
    """Return what was expected as it would be called: `track('signup', user_id='u1')`."""
    return _call(lane, {name: _shown(plain(value)) for name, value in expected.items()})


def _call(lane: str, shown: dict[str, str]) -> str:
    named = dict(shown)
    name = [named.pop("event")] if "event" in named else []
    return f"{lane}({', '.join([*name, *_pairs(named)])})"


def _line(record: Recorded, expected: Mapping[str, Any]) -> str:
    shown = {
        name: _cut(_compared(value, plain(expected[name]))) if name in expected else _HIDDEN
        for name, value in record.fields.items()
        if name in expected or name not in _MADE_UP
    }
    if record.event is not None:
        shown["event"] = _shown(record.event)
    way = ""
    if record.options is not None:
        given = [name for name in _OPTIONS_SHOWN if name in record.options]
        pairs = _pairs({name: _shown(record.options[name]) for name in given})
        way = f"  [{', '.join(['through the broker', *pairs])}]"
    return _call(record.lane, shown) + way


def _compared(found: Any, expected: Any) -> str:
    """Return what was found, as far as it was compared."""
    if isinstance(found, dict) and isinstance(expected, dict):
        pairs = [
            f"{key!r}: {_compared(found[key], value)}"
            for key, value in expected.items()
            if key in found
        ]
        more = [_HIDDEN] if found.keys() - expected.keys() else []
        return f"{{{', '.join([*pairs, *more])}}}"
    if isinstance(found, list) and isinstance(expected, list) and len(found) == len(expected):
        return f"[{', '.join(map(_compared, found, expected))}]"
    return repr(found)


def _pairs(fields: Mapping[str, str]) -> list[str]:
    return [f"{name}={text}" for name, text in fields.items()]


def _shown(value: object) -> str:
    return _cut(repr(value))


def _cut(text: str) -> str:
    return text if len(text) <= _VALUE_CHARACTERS else f"{text[: _VALUE_CHARACTERS - 1]}{_HIDDEN}"
