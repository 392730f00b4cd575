"""The fields of a request for erasure, and their rules.

`request_of` reads the arguments of `forget`: an unknown name, a wrong type and a missing
field raise `InvalidEvent`, which names field and rule and never the value. `ErasureRequest`
is the one table of the fields; `events/typed_dicts` repeats them for type checkers.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from mm_tasks.erasure.audit import protocol
from mm_tasks.errors import InvalidEvent, Problem
from mm_tasks.events.explain import field_problem
from mm_tasks.events.limits import GRACE_MAX_S, ID_CHARACTERS_MAX, USER_ID_CHARACTERS_MAX
from mm_tasks.events.rules import too_long_rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

# After the erasure, later events of the subject are refused until a person lifts the fence,
# or are accepted again at once.
SUPPRESS, ONCE = MODES = ("suppress", "once")
# Each tag is searched for in every record; no person has more ids than this.
ANONYMOUS_IDS_MAX = 500
# A shorter id may be part of a reference by chance: ticket GDPR-1093 of user 109.
_TELLING_CHARACTERS = 6
# Tolerated clock skew.
_CLOCK_SKEW = timedelta(minutes=5)
_NOT_AN_ID = "must be text that is not empty, without lone surrogates"
NAMES_SUBJECT = "must not hold an id of the subject: the log outlives the erasure"


class Reason(StrEnum):
    """The legal ground of an erasure."""

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
    """A request for erasure. `received_at` None means now.

    `reason` None: nobody stated one. `grace_s` None: as `MM_TASKS_ERASURE_GRACE_S`, which `forget`
    puts in; here it means 0.
    """

    user_id: str = field(repr=False)
    requested_by: str
    reason: str | None = None
    ticket: str | None = None
    received_at: datetime | None = None
    anonymous_ids: tuple[str, ...] = field(default=(), repr=False)
    mode: str = SUPPRESS
    grace_s: float | None = None

    def check(self) -> None:
        """Raise `InvalidEvent` with each broken rule but that of a future: see `request_of`."""
        request_of({name: getattr(self, name) for name in _NAMES})


_NAMES = tuple(column.name for column in fields(ErasureRequest))


def request_of(arguments: Mapping[str, object], now: datetime | None = None) -> ErasureRequest:
    """Return the request; None means "not given". Raises `InvalidEvent` with every problem.

    With `now`, the time of the host that states `received_at`, that may not be in the future.
    Without it no rule is about time: another host's clock judges no statement.
    """
    values: dict[str, Any] = {k: value for k, value in arguments.items() if value is not None}
    unknown = f"is not a field of this call; known are {', '.join(_NAMES)}"
    problems = [field_problem(name, unknown, "forget") for name in arguments if name not in _NAMES]
    problems += [
        Problem(name, "is required") for name in ("user_id", "requested_by") if name not in values
    ]
    if "received_at" in values:
        values["received_at"] = _time(values["received_at"])
    anonymous = values.get("anonymous_ids", ())
    known_ids = [values.get("user_id"), *(() if _ids_rule(anonymous) else anonymous)]
    ids = [id_ for id_ in known_ids if isinstance(id_, str)]
    rules: dict[str, Callable[[Any], str]] = {
        "user_id": _user_id_rule,
        "requested_by": lambda value: _text_rule(value) or reference_rule(value, ids),
        "ticket": lambda value: _text_rule(value) or reference_rule(value, ids),
        "received_at": lambda value: _time_rule(value, now),
        "reason": lambda value: _choice_rule(value, Reason),
        "mode": lambda value: _choice_rule(value, MODES),
        "anonymous_ids": _ids_rule,
        "grace_s": _grace_rule,
    }
    for name, rule_of in rules.items():
        if name in values and (rule := rule_of(values[name])):
            problems.append(Problem(name, rule))
    if problems:
        raise InvalidEvent(problems)
    return ErasureRequest(**{**values, "anonymous_ids": tuple(anonymous)})


def reference_rule(reference: object, ids: Iterable[str]) -> str:
    """Return the rule that keeps this reference out of the log, or ''; `ids` are the subject's."""
    if not protocol.is_reference(reference):
        return "must be an opaque reference: 1-128 characters, no @, no spaces"
    folded = str(reference).casefold()
    for id_ in map(str.casefold, ids):
        if id_ == folded or (len(id_) >= _TELLING_CHARACTERS and id_ in folded):
            return NAMES_SUBJECT
    return ""


def _text_rule(value: object) -> str:
    return "" if isinstance(value, str) else "must be a string"


def _choice_rule(value: object, choices: Iterable[str]) -> str:
    is_choice = value in tuple(choices)
    return _text_rule(value) or ("" if is_choice else f"must be one of {', '.join(choices)}")


def _user_id_rule(value: object) -> str:
    if type(value) is int:
        return "must be a string; use str()"
    return _text_rule(value) or _id_rule(str(value), USER_ID_CHARACTERS_MAX)


def _ids_rule(ids: Any) -> str:
    is_list = isinstance(ids, list | tuple | set | frozenset)
    if not is_list or not all(isinstance(id_, str) for id_ in ids):
        return "must be a list of strings"
    if len(ids) > ANONYMOUS_IDS_MAX:
        return f"must be at most {ANONYMOUS_IDS_MAX} ids"
    return max((_id_rule(id_, ID_CHARACTERS_MAX) for id_ in ids), default="")


def _grace_rule(grace_s: Any) -> str:
    is_number = isinstance(grace_s, int | float) and not isinstance(grace_s, bool)
    holds = is_number and 0 <= grace_s <= GRACE_MAX_S
    return "" if holds else f"must be a number of seconds from 0 to {GRACE_MAX_S}"


def _id_rule(id_: str, characters_max: int) -> str:
    try:
        is_id = bool(id_.encode())
    except UnicodeEncodeError:
        is_id = False
    return too_long_rule(id_, characters_max) if is_id else _NOT_AN_ID


def _time_rule(time: datetime | None, now: datetime | None) -> str:
    if time is None:
        return "must be an aware datetime, or ISO 8601 text"
    if time.tzinfo is None:
        return "must have a time zone"
    is_future = now is not None and time > now + _CLOCK_SKEW
    return "must not be in the future" if is_future else ""


def _time(value: object) -> datetime | None:
    try:
        time = datetime.fromisoformat(value) if isinstance(value, str) else value
        if not isinstance(time, datetime):
            return None
        if time.tzinfo is not None:
            time.astimezone(UTC)  # the first and last hours of the calendar have no date in UTC
    except (ValueError, OverflowError):
        return None
    return time
