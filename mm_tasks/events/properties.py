"""Values of `properties` and `traits`, and their form as JSON.

JSON's own types are sent as they are. Beyond them:

    aware datetime   text as in `timestamp`: UTC, milliseconds, Z
    date             YYYY-MM-DD
    UUID             its usual text
    Enum             its value, by these same rules
    tuple            an array
    str, int, float subclasses   their plain value

Everything else is refused: `Decimal` because JSON numbers are binary in JavaScript
(send integer cents, or choose str() or float()), bytes, sets, NaN, and
integers that JavaScript would change. A message gives positions ("entry 2,
then entry 1"), never a key or a value: both may be personal data.
"""

from __future__ import annotations

import math
import re
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import uuid_utils
from pydantic_core import to_json

from mm_tasks.events.limits import INTEGER_MAX, PROPERTIES_BYTES_MAX, PROPERTIES_DEPTH_MAX
from mm_tasks.timestamps import stamp

# An entry is at least one digit and its comma. The bound also ends structures that share
# lists: a list that holds itself twice has 2^32 entries before it is too deep.
ENTRIES_MAX = PROPERTIES_BYTES_MAX // 2
_RULES_MAX = 20
# The longest text of a number in JavaScript, such as -0.0000012345678901234567.
_JS_NUMBER_CHARACTERS_MAX = 25
# Our shortest number with an exponent and its comma, 1e-7 and 5 bytes, may count as 26.
_JS_GROWTH_MAX = 6

_Path = tuple[int, ...]
_PLAIN = {str, bool, type(None)}
_SURROGATE = re.compile("[\\ud800-\\udfff]")
_TOO_DEEP = f"must not be nested deeper than {PROPERTIES_DEPTH_MAX}"
_TOO_LARGE = f"is above {PROPERTIES_BYTES_MAX} bytes as JSON"
_NAIVE = "must have an offset from UTC; a naive time could mean any zone"
_OUT_OF_YEARS = "must be between the years 1 and 9999 in UTC"


class InvalidValue(Exception):
    """The broken rules; `is_size` if a limit in bytes is the only one."""

    def __init__(self, *rules: str, is_size: bool = False) -> None:
        """Take at least one rule, with its place if it has one."""
        self.rules = rules
        self.is_size = is_size
        super().__init__(*rules)


def instant(value: datetime) -> str:
    """Return a datetime in the vendor's form, `YYYY-MM-DDTHH:MM:SS.mmmZ`, truncated.

    Raise `InvalidValue` for a naive time, and for one that UTC cannot express.
    """
    if value.utcoffset() is None:
        raise InvalidValue(_NAIVE)
    try:
        return stamp(value)
    except OverflowError:
        raise InvalidValue(_OUT_OF_YEARS) from None


def plain_object(value: object) -> dict[str, Any]:
    """Return `value` as a JSON object of JSON's types, or raise `InvalidValue`.

    A plain value is returned itself, not a copy. The caller checks two rules that cost
    nothing while encoding: lone surrogates and the size.
    """
    if type(value) is dict and _entries_left(value, 1, ENTRIES_MAX) >= 0:
        return value
    return _converted(value)


def check_object(value: object) -> None:
    """Raise `InvalidValue` with every broken rule, lone surrogates and the size included."""
    check_size(_converted(value))


def check_size(plain: dict[str, Any]) -> None:
    """Raise `InvalidValue` if the object may be above the limit, sent or as JavaScript's text.

    The vendor measures the text of JSON.stringify, whose numbers may be longer than ours.
    """
    size = len(to_json(plain)) + _js_growth(plain)
    if size > PROPERTIES_BYTES_MAX:
        msg = f"is {size} bytes as JSON; the limit is {PROPERTIES_BYTES_MAX}"
        raise InvalidValue(msg, is_size=True)


def surely_fits(body_bytes: int) -> bool:
    """Say whether an object within `body_bytes` of JSON cannot be above the limit in bytes."""
    return body_bytes * _JS_GROWTH_MAX <= PROPERTIES_BYTES_MAX


def _entries_left(value: Any, depth: int, left: int) -> int:
    """Return how many of `left` entries a plain `value` leaves; negative if it is not plain."""
    left -= len(value)
    if left < 0:
        return -1
    items = value
    if type(value) is dict:
        items = value.values()
        for key in value:
            if type(key) is not str:
                return -1
    for item in items:
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


def _js_growth(value: object) -> int:
    """Return a bound of how much longer JSON.stringify prints the numbers of `value`.

    Both print the shortest digits that identify a number. If we print no exponent, JavaScript
    prints none, and nothing after the digits of 5.0.
    """
    if isinstance(value, float):
        text = to_json(value)
        return _JS_NUMBER_CHARACTERS_MAX - len(text) if b"e" in text else 0
    if isinstance(value, dict):
        return sum(map(_js_growth, value.values()))
    if isinstance(value, list):
        return sum(map(_js_growth, value))
    return 0


def _converted(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        msg = "must be an object (a dict)"
        raise InvalidValue(msg)
    conversion = _Conversion()
    plain: dict[str, Any] = conversion.value(value)
    if conversion.rules:
        raise InvalidValue(*conversion.rules)
    return plain


class _Conversion:
    """One walk over a value that is not plain: converts it and collects broken rules.

    The path of a value has one position for each container around it.
    """

    def __init__(self) -> None:
        self.rules: list[str] = []
        self.entries_left = ENTRIES_MAX

    def value(self, value: Any, path: _Path = ()) -> Any:
        if isinstance(value, Enum):
            return self.value(value.value, path)
        if isinstance(value, (dict, list, tuple)):
            return self._container(value, path)
        return self._scalar(value, path)

    def _container(self, value: Any, path: _Path) -> Any:
        if len(path) >= PROPERTIES_DEPTH_MAX:
            # At once and without the path: a cycle has no end.
            raise InvalidValue(*self.rules, _TOO_DEEP)
        is_dict = isinstance(value, dict)
        plain = {}
        for position, (key, item) in enumerate(value.items() if is_dict else enumerate(value), 1):
            self.entries_left -= 1
            if self.entries_left < 0:
                raise InvalidValue(*self.rules, _TOO_LARGE, is_size=not self.rules)
            place = (*path, position)
            if isinstance(key, str):
                self._scalar(key, place)
            elif is_dict:
                self._refuse("must have text as its key", place)
            plain[key] = self.value(item, place)
        return plain if is_dict else list(plain.values())

    def _scalar(self, value: Any, path: _Path) -> Any:
        match value:
            case str() if not value.isascii() and _SURROGATE.search(value):
                rule = "must not hold lone surrogates"
            case None | str():
                return value
            case int() if not -INTEGER_MAX <= value <= INTEGER_MAX:
                rule = "must be within ±(2^53-1), or JavaScript changes it; send a string"
            case float() if not math.isfinite(value):
                rule = "must be finite: JSON has no NaN and no infinity"
            case int() | float():
                return value
            case _:
                return self._extra(value, path)
        return self._refuse(rule, path)

    def _extra(self, value: Any, path: _Path) -> Any:
        match value:
            case datetime():
                try:
                    return instant(value)
                except InvalidValue as error:
                    rule = error.rules[0]
            case date():
                return value.isoformat()
            case UUID() | uuid_utils.UUID():
                return str(value)
            case Decimal():
                rule = "must not be a Decimal: send integer cents, or str()/float() of it"
            case bytes() | bytearray() | memoryview():
                rule = "must not be bytes: JSON holds text"
            case _:
                rule = "must be a JSON type, datetime, date, UUID or Enum"
        return self._refuse(rule, path)

    def _refuse(self, rule: str, path: _Path) -> None:
        place = ", then ".join(f"entry {position}" for position in path)
        self.rules.append(f"{rule} ({place})")
        if len(self.rules) >= _RULES_MAX:
            raise InvalidValue(*self.rules)
