"""The arguments of `forget`, read: what becomes an `ErasureRequest`, or why it does not.

As strict as `events`: an unknown name, a wrong type and a missing field all raise
`InvalidEvent`, which names field and rule and never the value.
"""

from __future__ import annotations

import re
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mm_tasks.erasures import ErasureRequest
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.limits import ID_CHARACTERS_MAX, USER_ID_CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Mapping

# Each tag is looked for in every record; more ids than this are no one person's.
ANONYMOUS_IDS_MAX = 500

_NAMES = tuple(one.name for one in fields(ErasureRequest))
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_TOO_LONG = "must have at most {} characters, counted in UTF-16 as JavaScript does"


def request_of(given: Mapping[str, object]) -> ErasureRequest:
    """Return the request; None means "not given". Raises `InvalidEvent` with every problem."""
    values: dict[str, Any] = {name: one for name, one in given.items() if one is not None}
    problems = [_unknown(name) for name in given if name not in _NAMES]
    problems += [
        Problem(name, "is required") for name in ("user_id", "requested_by") if name not in values
    ]
    problems += _text_problems(values)
    if "anonymous_ids" in values:
        ids = values["anonymous_ids"]
        rule = _ids_rule(ids)
        problems += [Problem("anonymous_ids", rule)] if rule else []
        values["anonymous_ids"] = () if rule else tuple(ids)
    if isinstance(values.get("received_at"), str):
        values["received_at"] = _instant(values["received_at"])
    if "received_at" in values and not _is_instant(values["received_at"]):
        problems.append(Problem("received_at", "must be an aware datetime, or ISO 8601 text"))
    if problems:
        raise InvalidEvent(problems)
    return ErasureRequest(**values)


def _unknown(name: object) -> Problem:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return Problem("forget", "has a field with an unusable name")
    return Problem(name, f"is not a field of this call; known are {', '.join(_NAMES)}")


def _text_problems(values: Mapping[str, object]) -> list[Problem]:
    texts = [name for name in _NAMES if name not in {"anonymous_ids", "received_at"}]
    found = []
    for name in texts:
        value = values.get(name, "")
        if not isinstance(value, str):
            hint = "; use str()" if name == "user_id" and type(value) is int else ""
            found.append(Problem(name, f"must be a string{hint}"))
        elif name == "user_id" and _units(value) > USER_ID_CHARACTERS_MAX:
            found.append(Problem(name, _TOO_LONG.format(USER_ID_CHARACTERS_MAX)))
    return found


def _ids_rule(ids: object) -> str:
    if not isinstance(ids, list | tuple | set | frozenset):
        return "must be a list of strings"
    if len(ids) > ANONYMOUS_IDS_MAX:
        return f"must be at most {ANONYMOUS_IDS_MAX} ids"
    if not all(isinstance(one, str) for one in ids):
        return "must be a list of strings"
    if any(_units(one) > ID_CHARACTERS_MAX for one in ids):
        return _TOO_LONG.format(ID_CHARACTERS_MAX)
    return ""


def _units(text: str) -> int:
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def _is_instant(given: object) -> bool:
    try:
        # The first and the last hours of the calendar have no date in UTC.
        return isinstance(given, datetime) and bool(given.tzinfo is None or given.astimezone(UTC))
    except OverflowError:
        return False


def _instant(text: str) -> object:
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text
