"""Compare a record with expected fields, and describe the differences.

Pure. The expected fields are a subset: other fields and keys do not matter. Lists are
compared item by item. A description shows values of expected fields only, since many people
read the log of a CI and tests may use real data.
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
# Generated at each call, so shown only if expected.
_GENERATED = ("event_id", "timestamp")
# Of a scheduled call or one through the broker; others are internal to Celery, or hold calls.
_OPTIONS_SHOWN = ("countdown", "eta", "expires", "queue")


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


@dataclass(frozen=True, slots=True)
class Difference:
    """One place where a record differs from the expected fields."""

    path: str
    expected: Any
    found: Any


def plain(value: Any) -> Any:
    """Return a value as a record holds it: see `events/properties` for the conversions.

    A value that no property may hold is returned as it is, such as `unittest.mock.ANY`.
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
    """Return where `fields` differ. An expected None means that the field is absent."""
    return [
        difference
        for name, value in expected.items()
        for difference in _between(
            plain(value), fields.get(name, None if value is None else _ABSENT), name
        )
    ]


def _between(expected: Any, found: Any, path: str) -> Iterator[Difference]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key, value in expected.items():
            yield from _between(value, found.get(key, _ABSENT), f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(expected) == len(found):
        for place, (item, other) in enumerate(zip(expected, found, strict=True)):
            yield from _between(item, other, f"{path}[{place}]")
    elif expected != found or _is_bool_for_number(expected, found):
        yield Difference(path, expected, found)


def _is_bool_for_number(value: object, other: object) -> bool:
    """Return whether one is a bool and the other a number: True is 1 in Python, not in JSON."""
    kinds = {type(value), type(other)}
    return bool in kinds and bool(kinds & {int, float})


def nearest(expected: Mapping[str, Any], records: Sequence[Recorded]) -> Recorded | None:
    """Return the most similar record: by event name first, then by number of differences."""
    wanted = str(plain(expected.get("event")))

    def distance(record: Recorded) -> tuple[float, int]:
        likeness = SequenceMatcher(None, wanted, str(record.event)).ratio()
        is_named = "event" in expected
        return (-likeness if is_named else 0, len(differences(expected, record.fields)))

    return min(records, key=distance, default=None)


def difference_lines(expected: Mapping[str, Any], record: Recorded) -> list[str]:
    """Return one line for each difference."""
    different = differences(expected, record.fields)
    width = max((len(entry.path) for entry in different), default=0)
    return [
        f"    {d.path:<{width}}  expected {_shown(d.expected)}, recorded {_shown(d.found)}"
        for d in different
    ]


def lines(records: Sequence[Recorded], expected: Mapping[str, Any]) -> list[str]:
    """Return a numbered line for each record, up to a maximum."""
    more = len(records) - _SHOWN_MAX
    shown = [
        f"    {number}. {_line(record, expected)}"
        for number, record in enumerate(records[:_SHOWN_MAX], 1)
    ]
    return [*shown, f"    and {more} more"] if more > 0 else shown


def call(lane: str, expected: Mapping[str, Any]) -> str:
    """Return the expected call as Python: `track('signup', user_id='u1')`."""
    return _call(lane, {name: _shown(plain(value)) for name, value in expected.items()})


def _call(lane: str, shown: dict[str, str]) -> str:
    named = dict(shown)
    name = [named.pop("event")] if "event" in named else []
    return f"{lane}({', '.join([*name, *_pairs(named)])})"


def _line(record: Recorded, expected: Mapping[str, Any]) -> str:
    shown = {
        name: _cut(_compared(value, plain(expected[name]))) if name in expected else _HIDDEN
        for name, value in record.fields.items()
        if name in expected or name not in _GENERATED
    }
    if record.event is not None:
        shown["event"] = _shown(record.event)
    way = ""
    if record.options is not None:
        options = {n: _shown(record.options[n]) for n in _OPTIONS_SHOWN if n in record.options}
        pairs = _pairs(options)
        how = "through the broker" if record.through_broker else "scheduled"
        way = f"  [{', '.join([how, *pairs])}]"
    return _call(record.lane, shown) + way


def _compared(found: Any, expected: Any) -> str:
    """Return the compared part of a recorded value."""
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
