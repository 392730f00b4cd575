"""Why fields were refused: each broken rule, by field, and never a value."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from pydantic_core import Url, ValidationError

from mm_tasks.errors import EventTooLarge, InvalidEvent, Problem
from mm_tasks.events.properties import InvalidValue, check_object
from mm_tasks.events.rules import TOO_LONG, Shape, present_fields, too_long_fields, vendor_timestamp

if TYPE_CHECKING:
    from collections.abc import Callable

# "The server sets … and ignores them from a client."
_FROM_URL = frozenset({"source", "medium", "campaign", "source_confidence", "source_rule_id"})
_FROM_REQUEST = frozenset({"country", "device_type", "browser", "os", "ip_hash"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_NOT_A_URL = "must be an absolute URL such as https://example.com/a"
_UNREADABLE = "could not be read"
# By pydantic's types of error; its own messages are not shown, so none can hold a value.
_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_short": 'must not be empty; leave it out or send None for "not given"',
    "string_unicode": "must not hold lone surrogates",
    "string_pattern_mismatch": _NOT_A_URL,
}


def refusal(fields: object, shape: Shape) -> InvalidEvent:
    """Return the error that says why `fields` were refused, with every rule found broken."""
    try:
        problems, is_size = _explain(fields, shape)
    except InvalidValue as refused:
        problems, is_size = [Problem("event", refused.rules[0])], False
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        problems, is_size = [], False
    # Nothing found: a hostile object that shows another face when read again.
    problems = problems or [Problem("event", _UNREADABLE)]
    return EventTooLarge(problems) if is_size else InvalidEvent(problems)


def _explain(fields: Any, shape: Shape) -> tuple[list[Problem], bool]:
    """Return the problems, and whether a limit in bytes is all there is."""
    given = present_fields(fields, shape)
    problems = [_unknown(name, shape) for name in given if name not in shape.names]
    texts = {name: value for name, value in given.items() if name in shape.names}
    if "timestamp" in texts:
        refused = _attempt(vendor_timestamp, texts.pop("timestamp"))
        problems += [Problem("timestamp", rule) for rule in refused.rules]
    free = _attempt(check_object, texts.pop(shape.free)) if shape.free in texts else InvalidValue()
    problems += _text_problems(texts, shape)
    is_size = free.is_size and not problems
    problems += [Problem(shape.free, rule) for rule in free.rules]
    return problems, is_size


def _attempt(check: Callable[[Any], object], value: object) -> InvalidValue:
    """Return what `check` refused; without rules if nothing."""
    try:
        check(value)
    except InvalidValue as refused:
        return InvalidValue(*refused.rules, is_size=refused.is_size)
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        return InvalidValue(_UNREADABLE)
    return InvalidValue()


def _unknown(name: object, shape: Shape) -> Problem:
    text = str.__str__(name) if issubclass(type(name), str) else ""
    if not _NAME.fullmatch(text):
        return Problem("event", "has a field with an unusable name")
    if text in _FROM_URL:
        return Problem(text, "is derived by the vendor; send `url` and `referrer` instead")
    if text in _FROM_REQUEST:
        return Problem(text, "is derived by the vendor from the request; it cannot be sent")
    close = difflib.get_close_matches(text, shape.names, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return Problem(text, f"is not a field of this call{hint}")


def _text_problems(texts: dict[str, Any], shape: Shape) -> list[Problem]:
    details = []
    try:
        shape.read(texts)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
    problems = {str(detail["loc"][0]): _rule(detail, texts, shape) for detail in details}
    sound = {name: str.__str__(texts[name]) for name in texts if name not in problems}
    for name in too_long_fields(sound, shape):
        problems[name] = TOO_LONG.format(shape.characters_max[name])
    if "url" in sound and "url" not in problems and _attempt(Url, sound["url"]).rules:
        problems["url"] = _NOT_A_URL
    return [Problem(name, problems[name]) for name in shape.names if name in problems]


def _rule(detail: Any, texts: dict[str, Any], shape: Shape) -> str:
    name = detail["loc"][0]
    if detail["type"] == "string_too_long":
        return TOO_LONG.format(shape.characters_max[name])
    hint = "; use str()" if name.endswith("_id") and type(texts.get(name)) is int else ""
    return _RULES.get(detail["type"], _UNREADABLE) + hint
