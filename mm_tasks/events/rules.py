"""The rules of an event's fields, as they are checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple, TypeGuard

from pydantic_core import SchemaValidator, Url, core_schema

from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS, EventField
from mm_tasks.events.limits import TIMESTAMP_CHARACTERS_MAX
from mm_tasks.events.properties import InvalidValue, instant
from mm_tasks.timestamps import STAMP

# No event has so many fields; a hostile mapping may have no end.
_FIELDS_READ_MAX = 100
_NOT_FIELDS = "must be given as a dict of fields"
_NOT_A_TIME = "must be an aware datetime or ISO 8601 text with a time and an offset"
_FIELD_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")


class Shape(NamedTuple):
    """The fields of one call.

    `read` validates a dict in one Rust pass, three times as fast as a pydantic model. It
    returns the fields in the order of the table.
    """

    fields: Mapping[str, EventField]
    free: str  # the field that is a JSON object
    read: Callable[[Any], dict[str, Any]]

    def present(self, fields: object) -> dict[str, Any]:
        """Return a copy without the known fields that are None; an unknown one is always wrong.

        Raise `InvalidValue` if `fields` is not a mapping.
        """
        if not isinstance(fields, (dict, Mapping)):
            raise InvalidValue(_NOT_FIELDS)
        return {
            name: value
            for name, value in islice(fields.items(), _FIELDS_READ_MAX)
            if value is not None or name not in self.fields
        }

    def too_long_rules(self, event: Mapping[str, Any]) -> dict[str, str]:
        """Return the rule for each text that is too long, by the name of its field."""
        return {
            name: rule
            for name, text in event.items()
            if name != self.free and (rule := too_long_rule(text, self.fields[name].characters_max))
        }


def _shape(fields: Mapping[str, EventField]) -> Shape:
    (free,) = (name for name, field in fields.items() if not field.characters_max)
    schema = core_schema.typed_dict_schema(
        {name: _field_schema(name, field) for name, field in fields.items()},
        extra_behavior="forbid",
        strict=True,
    )
    return Shape(fields, free, SchemaValidator(schema).validate_python)


def _field_schema(name: str, field: EventField) -> core_schema.TypedDictField:
    schema: core_schema.CoreSchema = core_schema.any_schema()
    if field.characters_max:
        # By then the text of a timestamp is our own: see `vendor_timestamp`.
        pattern = None if name == "timestamp" else field.pattern
        schema = core_schema.str_schema(
            strict=True, min_length=1, max_length=field.characters_max, pattern=pattern
        )
    if name == "url":
        schema = core_schema.no_info_after_validator_function(_checked_url, schema)
    return core_schema.typed_dict_field(schema, required=field.is_required)


def _checked_url(text: str) -> str:
    """Return the URL as the caller wrote it; raise pydantic's error if it cannot be parsed."""
    Url(text)
    return text


TRACK_SHAPE = _shape(TRACK_FIELDS)
IDENTIFY_SHAPE = _shape(IDENTIFY_FIELDS)


def is_field_name(name: object) -> TypeGuard[str]:
    """Say whether a name is an identifier of at most 64 characters, so that a message may show it.

    Anything else may be a value in the wrong place.
    """
    return isinstance(name, str) and bool(_FIELD_NAME.fullmatch(name))


def too_long_rule(text: str, characters_max: int) -> str:
    """Return the rule that a text breaks by its length in UTF-16 code units; '' if it fits."""
    # A code point is one unit or two.
    if 2 * len(text) <= characters_max:
        return ""
    if len(text.encode("utf-16-le", "surrogatepass")) // 2 <= characters_max:
        return ""
    return f"must have at most {characters_max} characters, counted in UTF-16 as JavaScript does"


def vendor_timestamp(value: object) -> str:
    """Return a timestamp in the vendor's form; raise `InvalidValue` if it is not a timestamp."""
    if isinstance(value, datetime):
        return instant(value)
    if not isinstance(value, str) or "T" not in value or len(value) > TIMESTAMP_CHARACTERS_MAX:
        raise InvalidValue(_NOT_A_TIME)
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidValue(_NOT_A_TIME) from None
    # In the vendor's form already; from Python 3.13 on, hour 24 means the next day.
    is_stamp = type(value) is str and STAMP.fullmatch(value) and value[11:13] < "24"
    return value if is_stamp else instant(moment)
