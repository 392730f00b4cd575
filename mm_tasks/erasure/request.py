"""The arguments of `forget`, read: what becomes an `ErasureRequest`, or why it does not.

As strict as `events`: an unknown name, a wrong type and a missing field all raise
`InvalidEvent`, which names field and rule and never the value.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import protocol
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events.limits import ID_CHARACTERS_MAX, USER_ID_CHARACTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

# What becomes of the subject's later events once the erasure is completed: they are refused
# until someone lifts that, or are accepted again at once.
SUPPRESS, ONCE = MODES = ("suppress", "once")
# In anything shorter, an id may be part of a reference by chance: ticket GDPR-1093 of user 109.
_TELLING_CHARACTERS = 6
NAMES_SUBJECT = "must not hold an id of the subject: the log outlives the erasure"
# Whose clock is right, the caller's or ours, is nothing to refuse a request for.
_CLOCKS_DIFFER = timedelta(minutes=5)


class Reason(StrEnum):
    """On which ground an erasure was asked for."""

    NO_LONGER_NEEDED = "gdpr_17_1_a"
    CONSENT_WITHDRAWN = "gdpr_17_1_b"
    OBJECTION = "gdpr_17_1_c"
    UNLAWFUL = "gdpr_17_1_d"
    LEGAL_OBLIGATION = "gdpr_17_1_e"
    CHILD = "gdpr_17_1_f"
    CCPA = "ccpa"
    CONTRACT = "contract"
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class ErasureRequest:
    """What was asked. `received_at` is None when that is now."""

    user_id: str = field(repr=False)
    requested_by: str
    reason: str = Reason.CONSENT_WITHDRAWN
    ticket: str | None = None
    received_at: datetime | None = None
    anonymous_ids: tuple[str, ...] = field(default=(), repr=False)
    mode: str = SUPPRESS

    def check(self, now: datetime) -> None:
        """Raise `InvalidEvent` with each field that could not be kept, never its value.

        How long an id may be is for the caller to check.
        """
        ids = (("user_id", self.user_id), *(("anonymous_ids", one) for one in self.anonymous_ids))
        problems = [
            Problem(name, "must be text that is not empty, without lone surrogates")
            for name, one in ids
            if not _is_id(one)
        ]
        if problems:
            raise InvalidEvent(problems)
        problems = [
            Problem(name, rule)
            for name in ("requested_by", "ticket")
            if (rule := self._broken_rule(getattr(self, name), is_optional=name == "ticket"))
        ]
        if self.received_at is not None:
            if self.received_at.tzinfo is None:
                problems.append(Problem("received_at", "must have a time zone"))
            elif self.received_at > now + _CLOCKS_DIFFER:
                problems.append(Problem("received_at", "must not be in the future"))
        if self.reason not in set(Reason):
            problems.append(Problem("reason", f"must be one of {', '.join(Reason)}"))
        if self.mode not in MODES:
            problems.append(Problem("mode", f"must be one of {', '.join(MODES)}"))
        if problems:
            raise InvalidEvent(problems)

    def _broken_rule(self, reference: object, *, is_optional: bool) -> str:
        if reference is None and is_optional:
            return ""
        return reference_rule(reference, (self.user_id, *self.anonymous_ids))


def reference_rule(reference: object, ids: Iterable[str]) -> str:
    """Return why the log may not hold this reference, '' if it may; `ids` are the subject's."""
    if not isinstance(reference, str) or not protocol.is_reference(reference):
        return "must be an opaque reference: 1-128 characters, no @, no spaces"
    folded = reference.casefold()
    for one in map(str.casefold, ids):
        if one == folded or (len(one) >= _TELLING_CHARACTERS and one in folded):
            return NAMES_SUBJECT
    return ""


def _is_id(given: object) -> bool:
    if not isinstance(given, str) or not given:
        return False
    try:
        given.encode()
    except UnicodeEncodeError:
        return False
    return True


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
