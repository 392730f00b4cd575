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

import re
import time
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Any
from uuid import UUID

import uuid_utils
from pydantic_core import to_json

from mm_tasks.events.limits import INTEGER_MAX, PROPERTIES_BYTES_MAX, PROPERTIES_DEPTH_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable

# An entry is at least one digit and its comma. The bound ends what would take for ever:
# a list that holds itself twice has 2^32 entries before it is too deep.
ENTRIES_MAX = PROPERTIES_BYTES_MAX // 2
_RULES_MAX = 20
# JavaScript prints at most this many times our bytes: 1e+20 becomes 21 digits.
_JS_GROWTH_MAX = 6
# ECMA-262, Number::toString: where a decimal point is still written without an exponent.
_JS_POINT_MIN, _JS_POINT_MAX = -6, 21

_MILLISECONDS = tuple(f".{ms:03d}Z" for ms in range(1000))
_Path = tuple[int, ...]
_PLAIN = frozenset({str, bool, type(None)})
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_TOO_DEEP = f"must not be nested deeper than {PROPERTIES_DEPTH_MAX}"
_TOO_LARGE = f"is above {PROPERTIES_BYTES_MAX} bytes as JSON"
_UNSAFE_INTEGER = "must be within ±(2^53-1), or JavaScript changes it; send a string"
_NOT_FINITE = "must be finite: JSON has no NaN and no infinity"
_NAIVE = "must have an offset from UTC; a naive time could mean any zone"
_OUT_OF_YEARS = "must be between the years 1 and 9999 in UTC"
_UNREADABLE = "could not be read"
_OTHER = "must be a JSON type, datetime, date, UUID or Enum"
_REFUSED_TYPES: tuple[tuple[tuple[type, ...], str], ...] = (
    ((Decimal,), "must not be a Decimal: send integer cents, or str()/float() of it"),
    ((bytes, bytearray, memoryview), "must not be bytes: JSON holds text"),
)


class InvalidValue(Exception):  # noqa: N818 - never leaves `events`
    """The rules that were broken; `is_size` if a limit in bytes was the only one."""

    def __init__(self, *rules: str, is_size: bool = False) -> None:
        """Take at least one rule, with its place where there is one."""
        self.rules = rules
        self.is_size = is_size
        super().__init__(*rules)


def now() -> str:
    """Return this moment in the form of `instant`."""
    ms = time.time_ns() // 1_000_000
    return _second(ms // 1000) + _MILLISECONDS[ms % 1000]


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def instant(value: datetime) -> str:
    """Return `YYYY-MM-DDTHH:MM:SS.mmmZ`, truncated to milliseconds (the vendor's form).

    Raise `InvalidValue` for a naive time, and for one that UTC cannot express.
    """
    rule = _NAIVE
    try:
        offset = value.utcoffset()
        if offset is not None:
            rule = _OUT_OF_YEARS
            # Rebuilt as a plain datetime: a subclass may print itself in another way.
            day = (value.year, value.month, value.day)
            clock = (value.hour, value.minute, value.second, value.microsecond)
            utc = datetime(*day, *clock) - offset  # noqa: DTZ001 - the offset is taken off
            return utc.isoformat(timespec="milliseconds") + "Z"
    except OverflowError:
        pass
    except Exception:  # noqa: BLE001 - a tzinfo is the caller's code
        rule = _UNREADABLE
    raise InvalidValue(rule)


def plain_object(value: object) -> dict[str, Any]:
    """Return `value` as a JSON object that holds JSON's types alone, or raise `InvalidValue`.

    What is already plain is returned itself, not a copy. Two rules are left to the
    caller, who sees them for nothing while encoding: lone surrogates and the size.
    """
    if type(value) is dict and _entries_left(value, 1, ENTRIES_MAX) >= 0:
        return value
    return _converted(value)


def check_object(value: object) -> None:
    """Raise `InvalidValue` with every broken rule found, those left to the caller included."""
    check_size(_converted(value))


def check_size(plain: dict[str, Any]) -> None:
    """Raise `InvalidValue` above the limit in bytes, in our text or in JavaScript's."""
    text = to_json(plain)
    size = max(len(text), len(text) + _js_growth(plain))
    if size > PROPERTIES_BYTES_MAX:
        msg = f"is {size} bytes as JSON; the limit is {PROPERTIES_BYTES_MAX}"
        raise InvalidValue(msg, is_size=True)


def surely_fits(body_bytes: int) -> bool:
    """Say whether no object inside `body_bytes` of JSON can be above the limit in bytes."""
    return body_bytes * _JS_GROWTH_MAX <= PROPERTIES_BYTES_MAX


def _entries_left(value: Any, depth: int, left: int) -> int:
    """Return how many of `left` entries a plain `value` leaves; negative if it is not plain."""
    left -= len(value)
    is_dict = type(value) is dict
    if left < 0 or (is_dict and not _has_text_keys(value)):
        return -1
    for item in value.values() if is_dict else value:
        kind = type(item)
        if kind in _PLAIN:
            continue
        if kind is int or kind is float:
            if not -INTEGER_MAX <= item <= INTEGER_MAX:  # larger floats go the long way
                return -1
        elif (kind is dict or kind is list) and depth < PROPERTIES_DEPTH_MAX:
            left = _entries_left(item, depth + 1, left)
        else:
            return -1
    return left


def _has_text_keys(value: dict[Any, Any]) -> bool:
    for key in value:  # noqa: SIM110 - all() takes twice as long
        if type(key) is not str:
            return False
    return True


def _js_growth(value: object) -> int:
    """Return by how many characters JSON.stringify prints the numbers of `value` longer."""
    if type(value) is float:
        return _js_length(value) - len(to_json(value))
    if type(value) is dict:
        return sum(map(_js_growth, value.values()))
    if type(value) is list:
        return sum(map(_js_growth, value))
    return 0


def _js_length(value: float) -> int:
    """Return the length of Number::toString(value) (ECMA-262, 6.1.6.1.20)."""
    if value == 0:
        return 1
    decimal = Decimal(repr(value))  # exact, whatever the caller's decimal context is
    digits = len("".join(map(str, decimal.as_tuple().digits)).rstrip("0"))
    point = decimal.adjusted() + 1
    sign = int(value < 0)
    if digits <= point <= _JS_POINT_MAX:
        return sign + point
    if 0 < point <= _JS_POINT_MAX:
        return sign + digits + 1
    if _JS_POINT_MIN < point <= 0:
        return sign + 2 - point + digits
    return sign + digits + int(digits > 1) + len(f"e{point - 1:+d}")


def _converted(value: object) -> dict[str, Any]:
    if not issubclass(type(value), dict):
        msg = "must be an object (a dict)"
        raise InvalidValue(msg)
    conversion = _Conversion()
    plain: dict[str, Any] = conversion.value(value, (), 0)
    if conversion.rules:
        raise InvalidValue(*conversion.rules)
    return plain


class _Conversion:
    """One walk over a value that is not plain: converts it and collects broken rules."""

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.entries_left = ENTRIES_MAX

    def value(self, value: Any, path: _Path, depth: int) -> Any:
        kind = type(value)
        if value is None or kind is bool:
            return value
        if issubclass(kind, Enum):
            return self.value(value.value, path, depth)
        if issubclass(kind, str):
            return self._text(value, path)
        if issubclass(kind, int | float):
            return self._number(value, path)
        if issubclass(kind, dict | list | tuple):
            return self._container(value, path, depth + 1)
        return self._extra(value, path)

    def _container(self, value: Any, path: _Path, depth: int) -> Any:
        if depth > PROPERTIES_DEPTH_MAX:
            # Without the path, and at once: a cycle has no end of places.
            raise InvalidValue(*self.rules, _TOO_DEEP)
        if issubclass(type(value), dict):
            return self._object(value.items(), path, depth)
        return [
            self.value(item, (*path, position), depth)
            for position, item in enumerate(self._counted(value), 1)
        ]

    def _object(self, items: Iterable[tuple[Any, Any]], path: _Path, depth: int) -> dict[str, Any]:
        plain: dict[str, Any] = {}
        for position, (key, item) in enumerate(self._counted(items), 1):
            here = (*path, position)
            text = str.__str__(key) if issubclass(type(key), str) else None
            if text is None:
                self._refuse("must have text as its key", here)
            elif text in plain:
                self._refuse("must not have the key of an earlier entry", here)
            else:
                plain[text] = None
            converted = self.value(item, here, depth)
            if text is not None:
                plain[self._text(text, here)] = converted
        return plain

    def _counted(self, items: Iterable[Any]) -> Iterable[Any]:
        for item in islice(items, ENTRIES_MAX + 1):
            self.entries_left -= 1
            if self.entries_left < 0:
                raise InvalidValue(*self.rules, _TOO_LARGE, is_size=not self.rules)
            yield item

    def _number(self, value: float, path: _Path) -> float | None:
        if isinstance(value, int):
            number = int.__index__(value)
            if -INTEGER_MAX <= number <= INTEGER_MAX:
                return number
            self._refuse(_UNSAFE_INTEGER, path)
            return None
        real = float.__float__(value)
        if real - real != 0.0:  # NaN for both infinities and NaN
            self._refuse(_NOT_FINITE, path)
        return real

    def _text(self, value: str, path: _Path) -> str:
        text = str.__str__(value)
        if not text.isascii() and _SURROGATE.search(text):
            self._refuse("must not hold lone surrogates", path)
        return text

    def _extra(self, value: Any, path: _Path) -> str | None:
        kind = type(value)
        if issubclass(kind, datetime):
            return self._instant(value, path)
        if issubclass(kind, date):
            return date.isoformat(value)
        if issubclass(kind, UUID):
            return UUID.__str__(value)
        if kind is uuid_utils.UUID:
            return str(value)
        rule = next((rule for types, rule in _REFUSED_TYPES if issubclass(kind, types)), _OTHER)
        self._refuse(rule, path)
        return None

    def _instant(self, value: datetime, path: _Path) -> str | None:
        try:
            return instant(value)
        except InvalidValue as refused:
            rule = refused.rules[0]
        self._refuse(rule, path)
        return None

    def _refuse(self, rule: str, path: _Path) -> None:
        place = ", then ".join(f"entry {position}" for position in path)
        self.rules.append(f"{rule} ({place})")
        if len(self.rules) >= _RULES_MAX:
            raise InvalidValue(*self.rules)
