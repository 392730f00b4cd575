"""The rules of an event's fields, in the form in which they are checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

from pydantic_core import SchemaValidator, core_schema

from mm_tasks.events.limits import (
    EVENT_NAME_CHARACTERS_MAX,
    ID_CHARACTERS_MAX,
    URL_CHARACTERS_MAX,
    USER_ID_CHARACTERS_MAX,
)
from mm_tasks.events.models import IdentifyEvent, TrackEvent
from mm_tasks.events.properties import InvalidValue, instant

if TYPE_CHECKING:
    from pydantic import BaseModel

# Rust's \s is Unicode's. What a URL parser would strip or repair is refused: it is sent as given.
_URL_PATTERN = r"^[A-Za-z][A-Za-z0-9+.-]*://[^\s\x00-\x20\x7f-\x9f]*$"
# Of the text `instant` would print itself, which is then sent as given.
_NORMAL = re.compile(r"\d{4}-\d\d-\d\dT(?:[01]\d|2[0-3]):\d\d:\d\d\.\d{3}Z", re.ASCII)
_TIMESTAMP_CHARACTERS_MAX = 64
_FIELDS_READ_MAX = 100
_NOT_FIELDS = "must be given as a dict of fields"
_NOT_A_TIME = "must be an aware datetime or ISO 8601 text with a time and an offset"
TOO_LONG = "must have at most {} characters, counted in UTF-16 as JavaScript does"


@dataclass(frozen=True, slots=True)
class Shape:
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


def _shape(model: type[BaseModel], free: str) -> Shape:
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
    return Shape(texts, free, names, SchemaValidator(schema).validate_python)


def _text_schema(name: str) -> core_schema.StringSchema:
    pattern = _URL_PATTERN if name == "url" else None
    most = _CHARACTERS_MAX[name]
    return core_schema.str_schema(strict=True, min_length=1, max_length=most, pattern=pattern)


TRACK_SHAPE = _shape(TrackEvent, "properties")
IDENTIFY_SHAPE = _shape(IdentifyEvent, "traits")


def present_fields(fields: Mapping[str, object], shape: Shape) -> dict[str, Any]:
    """Return a copy without the known fields that are None."""
    if type(fields) is not dict:
        if not issubclass(type(fields), Mapping):
            raise InvalidValue(_NOT_FIELDS)
        # No event has so many fields; a hostile mapping may have no end.
        fields = dict(islice(fields.items(), _FIELDS_READ_MAX))
    given = {name: value for name, value in fields.items() if value is not None}
    if len(given) < len(fields):
        # A misspelt name is one whatever its value is.
        given |= {name: None for name in fields if name not in shape.names}
    return given


def too_long_fields(event: dict[str, Any], shape: Shape) -> list[str]:
    """Return the fields that are too long once characters are counted as JavaScript does."""
    return [
        name
        for name, most in shape.characters_max.items()
        # A code point is one unit or two.
        if 2 * len(event.get(name, "")) > most
        and len(event[name].encode("utf-16-le", "surrogatepass")) // 2 > most
    ]


def vendor_timestamp(value: object) -> str:
    r"""Return a timestamp in the vendor\'s form; raise `InvalidValue` for what is none."""
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
        raise InvalidValue(_NOT_A_TIME)
    return text if _NORMAL.fullmatch(text) else instant(parsed)
