"""The vendor's validation: the table "One event" of its reference, as code.

Text is counted in UTF-16 code units and numbers printed as JSON.stringify does.
Strict even if the page only implies a rule: null and "" for an optional field,
unknown fields, and a timestamp in another form than `YYYY-MM-DDTHH:MM:SS.mmmZ` are refused.
"""

from __future__ import annotations

import json
import re
import sys
from datetime import datetime
from typing import Any

from pydantic_core import Url

from mm_tasks.sandbox.answer import reject

LENGTHS = {
    "event": 128,
    "event_id": 128,
    "anonymous_id": 128,
    "user_id": 256,
    "session_id": 128,
    "url": 2048,
    "path": 2048,
    "referrer": 2048,
}
COMPUTED = frozenset(
    {"source", "medium", "campaign", "source_confidence", "source_rule_id"}
    | {"country", "device_type", "browser", "os", "ip_hash"}
)
BATCH_EVENTS_MAX = 500
PROPERTIES_MAX = 8192
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT([01]\d|2[0-3]):[0-5]\d:[0-5]\d\.\d{3}Z")
_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
# The shortest text of a number that JSON.stringify lengthens is 1e+20, to 21 digits.
_GROWTH_MAX = 5


def check_batch(body: Any) -> int:
    """Return the number of events of a batch, or refuse it whole, without naming the bad one."""
    events = body.get("events") if isinstance(body, dict) else None
    if not isinstance(events, list) or not 1 <= len(events) <= BATCH_EVENTS_MAX:
        reject("events", why="Required")
    if body.keys() != {"events"} or any(map(event_problem, events)):
        reject("events", why="Required")
    return len(events)


def check_event(body: Any) -> None:
    """Refuse a bad event."""
    problem = event_problem(body)
    if problem:
        reject(problem)


def check_identify(body: Any) -> None:
    """Refuse a bad identify: both ids are required, `traits` is an object or absent."""
    _check_fields(body, {"anonymous_id", "user_id"}, {"traits"})
    if type(body.get("traits", {})) is not dict:
        reject("traits")


def check_forget(body: Any) -> None:
    """Refuse a bad forget."""
    _check_fields(body, {"user_id"}, set())


def event_problem(event: Any) -> str | None:
    """Return the name of the first bad field of an event, or None."""
    if type(event) is not dict or "event" not in event:
        return "event"
    for name, value in event.items():
        if name in LENGTHS:
            if not _is_text(value, LENGTHS[name]):
                return str(name)
        elif name == "timestamp":
            if not _is_timestamp(value):
                return str(name)
        elif name == "properties":
            if type(value) is not dict or stringified(value) > PROPERTIES_MAX:
                return str(name)
        elif name not in COMPUTED:
            return str(name)
    return "url" if "url" in event and not _is_url(event["url"]) else None


def stringified(value: Any) -> int:
    """Return the UTF-8 size of JSON.stringify of `value`; approximate far below the limit."""
    size = len(_ENCODER.encode(value).encode("utf-8", "surrogatepass"))
    if size * _GROWTH_MAX <= PROPERTIES_MAX:
        return size
    return size + sum(printed(number) - len(repr(number)) for number in _numbers(value))


def printed(number: float) -> int:
    """Return the length of a number in JSON.stringify: Number::toString of ECMA-262."""
    size = abs(number)
    if size > sys.float_info.max:
        return len("null")
    if size < 1e21 and float(number).is_integer():  # noqa: PLR2004 - ECMA-262
        return len(str(int(number)))
    text = repr(float(number))
    if 1e-6 <= size < 1e-4:  # noqa: PLR2004 - here Python has an exponent and ECMA-262 has none
        digits, _, exponent = text.partition("e-")
        zeros = int(exponent) - 1
        return len("0.") + zeros + len(digits.replace(".", ""))
    return len(text.replace("e-0", "e-"))


def _check_fields(body: Any, required: set[str], optional: set[str]) -> None:
    if not isinstance(body, dict):
        reject(*sorted(required), why="Required")
    for name in sorted(body.keys() - required - optional):
        reject(name, why="Unrecognized key")
    for name in sorted(required):
        if not _is_text(body.get(name), LENGTHS[name]):
            reject(name, why="Invalid" if name in body else "Required")


def _is_text(value: object, longest: int) -> bool:
    if type(value) is not str:
        return False
    # The length of a JavaScript string is its number of UTF-16 units.
    size = len(value) if value.isascii() else len(value.encode("utf-16-le", "surrogatepass")) // 2
    return 1 <= size <= longest


def _is_timestamp(value: object) -> bool:
    if type(value) is not str or not _TIMESTAMP.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value)  # refuses the 30th of February
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    try:
        Url(text)
    except ValueError:
        return False
    return True


def _numbers(value: Any) -> list[float]:
    numbers, open_ = [], [value]
    while open_:
        item = open_.pop()
        if type(item) in {int, float}:
            numbers.append(item)
        elif type(item) in {dict, list}:
            open_.extend(item.values() if type(item) is dict else item)
    return numbers
