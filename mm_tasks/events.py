"""Events, validated as strictly as the vendor would, encoded once to the bytes sent.

What the vendor would refuse raises here, naming field and rule and never the
value, so that a rejected batch is an exception and not a habit. Nothing is
truncated or repaired: `None` means "not given", all else is sent as it is.

Lengths are in UTF-16 code units, the way the vendor's JavaScript counts.

Two passes: the first only decides, fast, since every `track.delay` waits for it;
the second runs when the first refused, and says why. Whatever a hostile object
raises in between is dropped, as its text may hold the value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Annotated, Any, Literal, NamedTuple

import uuid_utils
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import SchemaValidator, Url, ValidationError, core_schema, to_json

from mm_tasks.errors import EventTooLarge, InvalidEvent, Problem
from mm_tasks.limits import (
    BATCH_BRACKETS_BYTES,
    BATCH_BYTES_MAX,
    EVENT_NAME_CHARACTERS_MAX,
    ID_CHARACTERS_MAX,
    URL_CHARACTERS_MAX,
    USER_ID_CHARACTERS_MAX,
)
from mm_tasks.properties import (
    Refused,
    check_object,
    check_size,
    instant,
    now,
    plain_object,
    surely_fits,
)

TRACK: Literal["track"] = "track"
IDENTIFY: Literal["identify"] = "identify"
BACKFILL: Literal["backfill"] = "backfill"
# A backfill's events are those of `track`, in no hurry: see `keys.ENDPOINTS`.
LANES = (TRACK, IDENTIFY, BACKFILL)

# "The server sets … and ignores them from a client."
_FROM_URL = frozenset({"source", "medium", "campaign", "source_confidence", "source_rule_id"})
_FROM_REQUEST = frozenset({"country", "device_type", "browser", "os", "ip_hash"})
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
# Rust's \s is Unicode's. What a URL parser would strip or repair is refused: it is sent as given.
_URL_PATTERN = r"^[A-Za-z][A-Za-z0-9+.-]*://[^\s\x00-\x20\x7f-\x9f]*$"
# Of the text `instant` would print itself, which is then sent as given.
_NORMAL = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d\.\d{3}Z", re.ASCII)
_TIMESTAMP_CHARACTERS_MAX = 64
_FIELDS_READ_MAX = 100

_NOT_FIELDS = "must be given as a dict of fields"
_NOT_A_TIME = "must be an aware datetime or ISO 8601 text with a time and an offset"
_NOT_A_URL = "must be an absolute URL such as https://example.com/a"
_TOO_LONG = "must have at most {} characters, counted in UTF-16 as JavaScript does"
_UNREADABLE = "could not be read"
# By pydantic's types of error; its own messages are not shown, so none can hold a value.
_RULES = {
    "missing": "is required",
    "string_type": "must be a string",
    "string_too_short": 'must not be empty; leave it out or send None for "not given"',
    "string_unicode": "must not hold lone surrogates",
    "string_pattern_mismatch": _NOT_A_URL,
}

_Id = Annotated[str, Field(min_length=1, max_length=ID_CHARACTERS_MAX)]
_UserId = Annotated[str, Field(min_length=1, max_length=USER_ID_CHARACTERS_MAX)]
_Text = Annotated[str, Field(min_length=1, max_length=URL_CHARACTERS_MAX)]
_Name = Annotated[str, Field(min_length=1, max_length=EVENT_NAME_CHARACTERS_MAX)]


class _Event(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, hide_input_in_errors=True)


class TrackEvent(_Event):
    """One product event (`POST /v1/track`, `/v1/batch`), fields in the vendor's order."""

    event: _Name = Field(description="What happened: snake_case, past tense; `$…` for systems.")
    event_id: _Id | None = Field(None, description="Made up (UUIDv7) when absent.")
    timestamp: str | None = Field(None, description="When; aware datetime or ISO with an offset.")
    anonymous_id: _Id | None = Field(None, description="The visitor, as the browser knows them.")
    user_id: _UserId | None = Field(None, description="The person, once known.")
    session_id: _Id | None = Field(None, description="The vendor derives one when absent.")
    url: _Text | None = Field(
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


class Encoded(NamedTuple):
    """One event, ready to be stored: `body` is the exact JSON that will be sent."""

    id: str
    body: bytes
    user_id: str | None
    anonymous_id: str | None


@dataclass(frozen=True, slots=True)
class _Shape:
    """A call's fields: the most characters of each text, and the one free-form field.

    `read` is the model's rules in one Rust validator over a dict, three times as fast
    as the model itself; it returns the fields in the vendor's order.
    """

    characters_max: dict[str, int]
    free: str
    names: tuple[str, ...]
    read: Callable[[Any], dict[str, Any]]


_CHARACTERS_MAX = {
    "event": EVENT_NAME_CHARACTERS_MAX,
    "event_id": ID_CHARACTERS_MAX,
    "timestamp": _TIMESTAMP_CHARACTERS_MAX,
    "anonymous_id": ID_CHARACTERS_MAX,
    "user_id": USER_ID_CHARACTERS_MAX,
    "session_id": ID_CHARACTERS_MAX,
    "url": URL_CHARACTERS_MAX,
    "path": URL_CHARACTERS_MAX,
    "referrer": URL_CHARACTERS_MAX,
}


def _shape(model: type[BaseModel], free: str) -> _Shape:
    names = tuple(model.model_fields)
    fields = {
        name: core_schema.typed_dict_field(
            core_schema.any_schema() if name == free else _text_schema(name),
            required=field.is_required(),
        )
        for name, field in model.model_fields.items()
    }
    schema = core_schema.typed_dict_schema(fields, extra_behavior="forbid", strict=True)
    texts = {name: _CHARACTERS_MAX[name] for name in names if name != free}
    return _Shape(texts, free, names, SchemaValidator(schema).validate_python)


def _text_schema(name: str) -> core_schema.StringSchema:
    pattern = _URL_PATTERN if name == "url" else None
    most = _CHARACTERS_MAX[name]
    return core_schema.str_schema(strict=True, min_length=1, max_length=most, pattern=pattern)


_TRACK = _shape(TrackEvent, "properties")
_IDENTIFY = _shape(IdentifyEvent, "traits")


def encode_track(
    fields: Mapping[str, object], *, bytes_max: int = BATCH_BYTES_MAX - BATCH_BRACKETS_BYTES
) -> Encoded:
    """Validate and encode one event; raise `InvalidEvent` with every broken rule.

    `event_id` and `timestamp` are made here where absent, so that a repeat
    carries the same ones. `bytes_max` is what fits into a batch alone.
    """
    try:
        encoded = _encode_track(_given(fields, _TRACK))
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        encoded = None
    if encoded is None:
        raise _refusal(fields, _TRACK)
    if len(encoded.body) > bytes_max:
        rule = f"is {len(encoded.body)} bytes; {bytes_max} fit into a batch"
        raise EventTooLarge([Problem("event", rule)])
    return encoded


def encode_identify(fields: Mapping[str, object]) -> Encoded:
    """Validate and encode one identify; its id is ours alone, the vendor knows none."""
    try:
        event, body = _encode(_given(fields, _IDENTIFY), _IDENTIFY)
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        event, body = {}, b""
    if not event:
        raise _refusal(fields, _IDENTIFY)
    return Encoded(str(uuid_utils.uuid7()), body, event["user_id"], event["anonymous_id"])


def _given(fields: Mapping[str, object], shape: _Shape) -> dict[str, Any]:
    """Return a copy without the known fields that are None."""
    if type(fields) is not dict:
        if not issubclass(type(fields), Mapping):
            raise Refused(_NOT_FIELDS)
        # No event has so many fields; a hostile mapping may have no end.
        fields = dict(islice(fields.items(), _FIELDS_READ_MAX))
    given = {name: value for name, value in fields.items() if value is not None}
    if len(given) < len(fields):
        # A misspelt name is one whatever its value is.
        given |= {name: None for name in fields if name not in shape.names}
    return given


def _encode_track(given: dict[str, Any]) -> Encoded:
    given["timestamp"] = _timestamp(given["timestamp"]) if "timestamp" in given else now()
    if "event_id" not in given:
        given["event_id"] = str(uuid_utils.uuid7())
    event, body = _encode(given, _TRACK)
    return Encoded(event["event_id"], body, event.get("user_id"), event.get("anonymous_id"))


def _encode(given: dict[str, Any], shape: _Shape) -> tuple[dict[str, Any], bytes]:
    """Return the fields in the vendor's order and their JSON, or raise anything."""
    if shape.free in given:
        given[shape.free] = plain_object(given[shape.free])
    event = shape.read(given)
    if "url" in event:
        Url(event["url"])
    body = to_json(event)
    if not body.isascii() and _too_long(event, shape):
        raise Refused(_TOO_LONG)
    if shape.free in event and not surely_fits(len(body)):
        check_size(event[shape.free])
    return event, body


def _too_long(event: dict[str, Any], shape: _Shape) -> list[str]:
    """Return the fields that are too long once characters are counted as JavaScript does."""
    return [
        name
        for name, most in shape.characters_max.items()
        # A code point is one unit or two.
        if 2 * len(event.get(name, "")) > most
        and len(event[name].encode("utf-16-le", "surrogatepass")) // 2 > most
    ]


def _timestamp(value: object) -> str:
    kind = type(value)
    if issubclass(kind, datetime):
        return instant(value)  # type: ignore[arg-type] # its type was just looked at
    text = str.__str__(value) if issubclass(kind, str) else ""
    parsed = None
    if "T" in text and len(text) <= _TIMESTAMP_CHARACTERS_MAX:
        try:
            parsed = datetime.fromisoformat(text)
        except ValueError:
            parsed = None
    if parsed is None:
        raise Refused(_NOT_A_TIME)
    return text if _NORMAL.fullmatch(text) else instant(parsed)


def _refusal(fields: object, shape: _Shape) -> InvalidEvent:
    """Return the error that says why `fields` were refused, with every rule found broken."""
    try:
        problems, is_size = _explain(fields, shape)
    except Refused as refused:
        problems, is_size = [Problem("event", refused.rules[0])], False
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        problems, is_size = [], False
    # Nothing found: a hostile object that shows another face when read again.
    problems = problems or [Problem("event", _UNREADABLE)]
    return EventTooLarge(problems) if is_size else InvalidEvent(problems)


def _explain(fields: Any, shape: _Shape) -> tuple[list[Problem], bool]:  # noqa: ANN401 - anything
    """Return the problems, and whether a limit in bytes is all there is."""
    given = _given(fields, shape)
    problems = [_unknown(name, shape) for name in given if name not in shape.names]
    texts = {name: value for name, value in given.items() if name in shape.names}
    if "timestamp" in texts:
        refused = _attempt(_timestamp, texts.pop("timestamp"))
        problems += [Problem("timestamp", rule) for rule in refused.rules]
    free = _attempt(check_object, texts.pop(shape.free)) if shape.free in texts else Refused()
    problems += _text_problems(texts, shape)
    is_size = free.is_size and not problems
    problems += [Problem(shape.free, rule) for rule in free.rules]
    return problems, is_size


def _attempt(check: Callable[[Any], object], value: object) -> Refused:
    """Return what `check` refused; without rules if nothing."""
    try:
        check(value)
    except Refused as refused:
        return Refused(*refused.rules, is_size=refused.is_size)
    except Exception:  # noqa: BLE001 - a hostile object raises what it likes
        return Refused(_UNREADABLE)
    return Refused()


def _unknown(name: object, shape: _Shape) -> Problem:
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


def _text_problems(texts: dict[str, Any], shape: _Shape) -> list[Problem]:
    details = []
    try:
        shape.read(texts)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False)
    problems = {str(detail["loc"][0]): _rule(detail, texts, shape) for detail in details}
    sound = {name: str.__str__(texts[name]) for name in texts if name not in problems}
    for name in _too_long(sound, shape):
        problems[name] = _TOO_LONG.format(shape.characters_max[name])
    if "url" in sound and "url" not in problems and _attempt(Url, sound["url"]).rules:
        problems["url"] = _NOT_A_URL
    return [Problem(name, problems[name]) for name in shape.names if name in problems]


def _rule(detail: Any, texts: dict[str, Any], shape: _Shape) -> str:  # noqa: ANN401 - pydantic's
    name = detail["loc"][0]
    if detail["type"] == "string_too_long":
        return _TOO_LONG.format(shape.characters_max[name])
    hint = "; use str()" if name.endswith("_id") and type(texts.get(name)) is int else ""
    return _RULES.get(detail["type"], _UNREADABLE) + hint
