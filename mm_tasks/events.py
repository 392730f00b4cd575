"""Events, validated as strictly as the vendor would, encoded once to the bytes sent.

What the vendor would refuse raises here, naming field and rule and never the
value, so that a rejected batch is an exception and not a habit. Nothing is
truncated or repaired: `None` means "not given", all else is sent as it is.

Lengths are in UTF-16 code units, the way the vendor's JavaScript counts.
"""

from __future__ import annotations

import difflib
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, LiteralString, NamedTuple

import uuid_utils
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import PydanticCustomError, PydanticSerializationError, Url, to_json

from mm_tasks.errors import EventTooLarge, InvalidEvent, Problem
from mm_tasks.limits import (
    BATCH_BRACKETS_BYTES,
    BATCH_BYTES_MAX,
    EVENT_NAME_CHARACTERS_MAX,
    ID_CHARACTERS_MAX,
    PROPERTIES_BYTES_MAX,
    URL_CHARACTERS_MAX,
    USER_ID_CHARACTERS_MAX,
)
from mm_tasks.properties import Refused, instant, javascript_extra, now, plain_object

if TYPE_CHECKING:
    from collections.abc import Mapping

TRACK: Literal["track"] = "track"
IDENTIFY: Literal["identify"] = "identify"
LANES = (TRACK, IDENTIFY)

# "The server sets … and ignores them from a client."
_COMPUTED = frozenset({"source", "medium", "campaign", "source_confidence", "source_rule_id"})
_COMPUTED |= {"country", "device_type", "browser", "os", "ip_hash"}
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_EXPONENT = re.compile(rb"[0-9]e")
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f]")


_URL_RULE: LiteralString = "must be an absolute URL such as https://example.com/a"


def _absolute(url: str) -> str:
    valid = "://" in url and not _BLANK_OR_CONTROL.search(url)
    if valid:
        try:
            Url(url)
        except ValueError:
            valid = False
    if not valid:
        kind: LiteralString = "url"
        raise PydanticCustomError(kind, _URL_RULE)
    return url


_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]
_UserId = Annotated[str, Field(min_length=1, max_length=USER_ID_CHARACTERS_MAX)]
_Text = Annotated[str, Field(min_length=1, max_length=URL_CHARACTERS_MAX)]


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class TrackEvent(_Event):
    """One product event (`POST /v1/track`, `/v1/batch`), fields in the vendor's order."""

    event: Annotated[str, Field(min_length=1, max_length=EVENT_NAME_CHARACTERS_MAX)] = Field(
        description="What happened: snake_case, past tense. `$…` is for system events."
    )
    event_id: _Id | None = Field(None, description="Made up (UUIDv7) when absent.")
    timestamp: str | None = Field(None, description="When; aware datetime or ISO with an offset.")
    anonymous_id: _Id | None = Field(None, description="The visitor, as the browser knows them.")
    user_id: _UserId | None = Field(None, description="The person, once known.")
    session_id: _Id | None = Field(None, description="The vendor derives one when absent.")
    url: Annotated[_Text, AfterValidator(_absolute)] | None = Field(
        None, description="Absolute; the vendor reads utm_* and click ids here."
    )
    path: _Text | None = Field(None, description="The path shown in reports.")
    referrer: _Text | None = Field(None, description="The vendor derives the source from it.")
    properties: dict[str, Any] | None = Field(None, description="See `mm_tasks.properties`.")


class IdentifyEvent(_Event):
    """The link between a visitor and a person (`POST /v1/identify`)."""

    anonymous_id: _Id = Field(description="The visitor, as the browser knows them.")
    user_id: _UserId = Field(description="The person.")
    traits: dict[str, Any] | None = Field(None, description="As `properties` of an event.")


_FIELDS: dict[type[BaseModel], frozenset[str]] = {
    model: frozenset(model.model_fields) for model in (TrackEvent, IdentifyEvent)
}


class Encoded(NamedTuple):
    """One event, ready to be stored: `body` is the exact JSON that will be sent."""

    id: str
    body: bytes
    user_id: str | None
    anonymous_id: str | None


def encode_track(
    fields: Mapping[str, object], *, bytes_max: int = BATCH_BYTES_MAX - BATCH_BRACKETS_BYTES
) -> Encoded:
    """Validate and encode one event; raise `InvalidEvent` with every broken rule.

    `event_id` and `timestamp` are made here where absent, so that a repeat
    carries the same ones. `bytes_max` is what fits into a batch alone.
    """
    given, problems = _given(fields, TrackEvent)
    if "timestamp" in given:
        try:
            given["timestamp"] = _timestamp(given["timestamp"])
        except Refused as refused:
            problems.append(Problem("timestamp", str(refused)))
            del given["timestamp"]
    else:
        given["timestamp"] = now()
    if "event_id" not in given:
        given["event_id"] = str(uuid_utils.uuid7())
    body, event = _encode(TrackEvent, given, problems, "properties")
    if len(body) > bytes_max:
        rule = f"is {len(body)} bytes; {bytes_max} fit into a batch"
        raise EventTooLarge([Problem("event", rule)])
    return Encoded(event["event_id"], body, event.get("user_id"), event.get("anonymous_id"))


def encode_identify(fields: Mapping[str, object]) -> Encoded:
    """Validate and encode one identify; its id is ours alone, the vendor knows none."""
    given, problems = _given(fields, IdentifyEvent)
    body, event = _encode(IdentifyEvent, given, problems, "traits")
    return Encoded(str(uuid_utils.uuid7()), body, event["user_id"], event["anonymous_id"])


def _given(
    fields: Mapping[str, object], model: type[BaseModel]
) -> tuple[dict[str, Any], list[Problem]]:
    """Return the known fields that were given, and a problem for each unknown one."""
    problems: list[Problem] = []
    given: dict[str, Any] = {}
    known = _FIELDS[model]
    if not isinstance(fields, dict):
        raise InvalidEvent([Problem("event", "must be given as a dict of fields")])
    for name, value in fields.items():
        if name not in known:
            problems.append(_unknown(name, known))
        elif value is not None:
            # A subclass may print another text than it holds, and the fence's tag would differ.
            plain = str.__str__(value) if isinstance(value, str) else value
            given[name] = plain
    return given, problems


def _unknown(name: object, known: frozenset[str]) -> Problem:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return Problem("event", "has a field with an unusable name")
    if name in _COMPUTED:
        return Problem(name, "is derived by the vendor, from `url`, `referrer` and the request")
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return Problem(name, f"is not a field of this call{hint}")


def _timestamp(value: object) -> str:
    if isinstance(value, datetime):
        return instant(value)
    parsed = None
    if isinstance(value, str) and "T" in value:
        try:
            parsed = datetime.fromisoformat(value)
        except ValueError:
            parsed = None
    if parsed is None:
        msg = "must be an aware datetime or ISO 8601 text with a time and an offset"
        raise Refused(msg)
    return instant(parsed)


def _encode(
    model: type[BaseModel], given: dict[str, Any], problems: list[Problem], free: str
) -> tuple[bytes, dict[str, Any]]:
    """Return the JSON and the fields in the model's order; `free` is its free-form field."""
    if free in given:
        try:
            given[free] = plain_object(given[free])
        except (Refused, RecursionError) as error:
            rule = str(error) if isinstance(error, Refused) else "is nested too deeply"
            problems.append(Problem(free, rule))
            del given[free]
    try:
        checked = model.model_validate(given)
    except ValidationError as error:
        problems.extend(_problem(detail, given) for detail in error.errors(include_input=False))
    if problems:
        raise InvalidEvent(problems)
    event = {name: value for name, value in checked.__dict__.items() if value is not None}
    body = _json(event)
    if body is None:
        bad = next(name for name, value in event.items() if _json(value) is None)
        raise InvalidEvent([Problem(bad, "must not hold lone surrogates")])
    if not body.isascii():
        _check_utf16(event)
    _check_size(free, event.get(free), body)
    return body, event


def _problem(detail: Any, given: dict[str, Any]) -> Problem:  # noqa: ANN401 - pydantic's dict
    field = str(detail["loc"][0]) if detail["loc"] else "event"
    rule = detail["msg"].replace("String should", "must").replace("Input should", "must")
    if detail["type"] == "missing":
        rule = "is required"
    elif field.endswith("_id") and isinstance(given.get(field), int):
        rule += "; use str()"
    return Problem(field, rule)


def _json(value: object) -> bytes | None:
    """Return compact JSON in UTF-8; None where text holds a lone surrogate."""
    try:
        return to_json(value)
    except PydanticSerializationError:
        return None


_UNITS_MAX = {
    "event": EVENT_NAME_CHARACTERS_MAX,
    "event_id": ID_CHARACTERS_MAX,
    "anonymous_id": ID_CHARACTERS_MAX,
    "user_id": USER_ID_CHARACTERS_MAX,
    "session_id": ID_CHARACTERS_MAX,
    "url": URL_CHARACTERS_MAX,
    "path": URL_CHARACTERS_MAX,
    "referrer": URL_CHARACTERS_MAX,
}


def _check_utf16(event: dict[str, Any]) -> None:
    problems = [
        Problem(name, f"must have at most {most} characters, counted in UTF-16 as JavaScript does")
        for name, most in _UNITS_MAX.items()
        if name in event and len(event[name].encode("utf-16-le")) // 2 > most
    ]
    if problems:
        raise InvalidEvent(problems)


def _check_size(field: str, value: dict[str, Any] | None, body: bytes) -> None:
    # The whole body is longer than its part, and JavaScript prints no number without an
    # exponent longer than we do: most events end here.
    may_grow = _EXPONENT.search(body)
    if value is None or (len(body) <= PROPERTIES_BYTES_MAX and not may_grow):
        return
    extra = javascript_extra(value)
    size = len(_json(value) or b"") + extra
    if size > PROPERTIES_BYTES_MAX:
        rule = f"is {size} bytes as JSON; the limit is {PROPERTIES_BYTES_MAX}"
        raise EventTooLarge([Problem(field, rule)])
