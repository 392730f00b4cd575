"""Why fields were refused: each broken rule, by field, and never a value."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from pydantic_core import ValidationError

from mm_tasks.errors import EventTooLarge, InvalidEvent, Problem
from mm_tasks.events.properties import InvalidValue, check_object
from mm_tasks.events.rules import Shape, is_field_name, vendor_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

# "The server sets … and ignores them from a client."
_FROM_URL = frozenset({"source", "medium", "campaign", "source_confidence", "source_rule_id"})
_FROM_REQUEST = frozenset({"country", "device_type", "browser", "os", "ip_hash"})
_NOT_A_URL = "must be an absolute URL such as https://example.com/a"
UNREADABLE = "could not be read"
# By pydantic's types of error. Its own messages may hold a value and are not shown.
_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_short": 'must not be empty; leave it out or send None for "not given"',
    "string_unicode": "must not hold lone surrogates",
    "string_pattern_mismatch": _NOT_A_URL,
    "url_parsing": _NOT_A_URL,
}


def refusal(fields: object, shape: Shape) -> InvalidEvent:
    """Return the error that names every broken rule of `fields`.

    It is an `EventTooLarge` if a limit in bytes is the only one.
    """
    try:
        texts = shape.present(fields)
    except InvalidValue as error:
        return InvalidEvent([Problem("event", error.rules[0])])
    problems = [_unknown_field(name, shape) for name in texts if name not in shape.fields]
    texts = {name: value for name, value in texts.items() if name in shape.fields}
    timestamp = _refused(vendor_timestamp, texts, "timestamp")
    free = _refused(check_object, texts, shape.free)
    problems += [Problem("timestamp", rule) for rule in timestamp.rules]
    problems += _text_problems(texts, shape)
    is_size = free.is_size and not problems
    problems += [Problem(shape.free, rule) for rule in free.rules]
    problems = problems or [Problem("event", UNREADABLE)]
    return EventTooLarge(problems) if is_size else InvalidEvent(problems)


def field_problem(name: object, rule: str, whole: str) -> Problem:
    """Return the problem of an unknown field, or of `whole` if its name cannot be shown."""
    if is_field_name(name):
        return Problem(name, rule)
    return Problem(whole, "has a field with an unusable name")


def _refused(check: Callable[[Any], object], values: dict[str, Any], name: str) -> InvalidValue:
    """Take a value out of `values` and return what `check` refuses; without rules if nothing."""
    if name in values:
        try:
            check(values.pop(name))
        except InvalidValue as error:
            return error
    return InvalidValue()


def _unknown_field(name: object, shape: Shape) -> Problem:
    if name in _FROM_URL:
        rule = "is derived by the vendor; send `url` and `referrer` instead"
    elif name in _FROM_REQUEST:
        rule = "is derived by the vendor from the request; it cannot be sent"
    else:
        close = difflib.get_close_matches(name, shape.fields, n=1) if is_field_name(name) else []
        hint = f"; did you mean {close[0]}?" if close else ""
        rule = f"is not a field of this call{hint}"
    return field_problem(name, rule, "event")


def _text_problems(texts: dict[str, Any], shape: Shape) -> list[Problem]:
    rules = {}
    try:
        shape.read(texts)
    except ValidationError as error:
        for detail in error.errors(include_input=False, include_url=False):
            name, kind = str(detail["loc"][0]), detail["type"]
            hint = "; use str()" if name.endswith("_id") and type(texts.get(name)) is int else ""
            if kind != "string_too_long":
                rules[name] = _RULES.get(kind, UNREADABLE) + hint
    valid = {name: text for name, text in texts.items() if name not in rules}
    rules |= shape.too_long_rules(valid)
    return [Problem(name, rules[name]) for name in shape.fields if name in rules]
