"""What `properties` and `traits` may hold, and how it becomes JSON.

JSON's own types are sent as they are. Beyond them:

    aware datetime   text as in `timestamp`: UTC, milliseconds, Z
    date             YYYY-MM-DD
    UUID             its usual text
    Enum             its value, by these same rules
    tuple            an array
    str, int, float subclasses   their plain value

All else is refused: `Decimal` because JSON numbers are binary in JavaScript
(send integer cents, or decide for str() or float()), bytes, sets, NaN,
integers that JavaScript would change. A message gives positions ("entry 2,
then entry 1"), never a key or a value: both may be personal data.
"""

from __future__ import annotations

import math
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from typing import Any
from uuid import UUID

from pydantic_core import to_json

from mm_tasks.limits import INTEGER_MAX, PROPERTIES_DEPTH_MAX

# ECMA-262, Number::toString: outside of these JavaScript uses an exponent, as Python does.
_JS_PLAIN_MIN, _JS_PLAIN_MAX = 1e-7, 1e21
_PLAIN = frozenset({str, bool, type(None)})


class Refused(Exception):  # noqa: N818 - never leaves `events`
    """A rule was broken at `path`, positions from 1."""

    def __init__(self, rule: str, path: tuple[int, ...] = ()) -> None:
        """Take the rule and where it was broken."""
        self.rule = rule
        self.path = path
        super().__init__(rule)

    def __str__(self) -> str:
        """Return for example ``must be finite (entry 2, then entry 1)``."""
        place = ", then ".join(f"entry {position}" for position in self.path)
        return f"{self.rule} ({place})" if place else self.rule


def instant(value: datetime) -> str:
    """Return `YYYY-MM-DDTHH:MM:SS.mmmZ`, truncated to milliseconds (the vendor's form)."""
    if value.utcoffset() is None:
        msg = "must have an offset from UTC; a naive time could mean any zone"
        raise Refused(msg)
    try:
        utc = value.astimezone(UTC)
    except OverflowError:
        utc = None
    if utc is None:
        msg = "must be between the years 1 and 9999 in UTC"
        raise Refused(msg)
    return utc.replace(tzinfo=None).isoformat(timespec="milliseconds") + "Z"


def now() -> str:
    """Return this moment in the same form."""
    seconds, ms = divmod(time.time_ns() // 1_000_000, 1000)
    return f"{_second(seconds)}.{ms:03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def plain_object(value: object) -> dict[str, Any]:
    """Return a JSON object that only holds JSON's types; raise `Refused` otherwise."""
    if not isinstance(value, dict):
        msg = "must be an object (a dict)"
        raise Refused(msg)
    for key, item in value.items():
        kind = type(item)
        is_small = kind is int and -INTEGER_MAX <= item <= INTEGER_MAX
        is_finite = kind is float and math.isfinite(item)
        if type(key) is not str or not (is_small or is_finite or kind in _PLAIN):
            return _object(value, (), 1)
    return value


def javascript_extra(value: object) -> int:
    """Return by how many characters JSON.stringify may print the numbers in `value` longer.

    JavaScript writes 1e20 as 100000000000000000000 and 1e-5 as 0.00001
    (ECMA-262, Number::toString); the limit of `properties` is on its text.
    """
    if type(value) is float:
        text = to_json(value).decode()
        if "e" not in text or not _JS_PLAIN_MIN <= abs(value) < _JS_PLAIN_MAX:
            return 0
        return max(0, len(format(Decimal(text), "f")) - len(text))
    if type(value) is dict:
        return sum(map(javascript_extra, value.values()))
    if type(value) is list:
        return sum(map(javascript_extra, value))
    return 0


def _object(value: dict[Any, Any], path: tuple[int, ...], depth: int) -> dict[str, Any]:
    _check_depth(depth)
    result: dict[str, Any] = {}
    for position, (key, item) in enumerate(dict.items(value), 1):
        here = (*path, position)
        if not isinstance(key, str):
            msg = "must have text as its key"
            raise Refused(msg, here)
        result[str.__str__(key)] = _value(item, here, depth)
    return result


def _array(value: list[Any] | tuple[Any, ...], path: tuple[int, ...], depth: int) -> list[Any]:
    _check_depth(depth)
    return [_value(item, (*path, position), depth) for position, item in enumerate(value, 1)]


def _check_depth(depth: int) -> None:
    if depth > PROPERTIES_DEPTH_MAX:
        # Without the path: it would be 32 positions long, and a cycle has none.
        msg = f"must not be nested deeper than {PROPERTIES_DEPTH_MAX}"
        raise Refused(msg)


def _value(  # noqa: PLR0911 - one line for each type
    value: object, path: tuple[int, ...], depth: int
) -> Any:  # noqa: ANN401 - JSON
    if type(value) in _PLAIN:
        return value
    if isinstance(value, Enum):
        return _value(value.value, path, depth)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int | float):
        return _number(value, path)
    if isinstance(value, dict):
        return _object(value, path, depth + 1)
    if isinstance(value, list | tuple):
        return _array(value, path, depth + 1)
    return _converted(value, path)


def _number(value: float, path: tuple[int, ...]) -> float:
    if isinstance(value, int):
        if abs(number := int.__index__(value)) > INTEGER_MAX:
            msg = "must be within ±(2^53-1), or JavaScript changes it; send a string"
            raise Refused(msg, path)
        return number
    if not math.isfinite(value):
        msg = "must be finite: JSON has no NaN and no infinity"
        raise Refused(msg, path)
    return float.__float__(value)


def _converted(value: object, path: tuple[int, ...]) -> str:
    match value:
        case datetime():
            try:
                return instant(value)
            except Refused as refused:
                rule = refused.rule
        case date():
            return value.isoformat()
        case UUID():
            return str(value)
        case Decimal():
            rule = "must not be a Decimal: send integer cents, or str() or float() of it"
        case bytes() | bytearray() | memoryview():
            rule = "must not be bytes: JSON holds text"
        case _:
            rule = "must be a JSON type, datetime, date, UUID or Enum"
    raise Refused(rule, path)
