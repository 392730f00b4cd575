"""JSON Schema of the events, for programs in other languages and for editors.

Made from the tables of `event_fields`. A call refuses everything that the schema refuses, and more:
JSON Schema cannot express some rules (a limit in bytes, a date that exists), so a comment states
them. No `format`: a validator that checks it refuses times and URLs that a call accepts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.events import limits
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS, EventField
from mm_tasks.events.lanes import IDENTIFY, TRACK

if TYPE_CHECKING:
    from collections.abc import Mapping

DRAFT = "https://json-schema.org/draft/2020-12/schema"
_FREE = (
    f"At most {limits.PROPERTIES_BYTES_MAX} bytes as JSON (8 KB), "
    f"{limits.PROPERTIES_DEPTH_MAX} levels; integers within ±{limits.INTEGER_MAX}, no NaN, "
    "no lone surrogates."
)
_COMMENT = (
    "Refused as well: a text of more UTF-16 code units than its maxLength, which counts "
    "characters; lone surrogates in any text; a timestamp or a url with the form of one that is "
    "none; properties and traits above their limits. null, where it may be, is as good as absent."
)
_TRACK_DESCRIPTION = (
    "One product event (`POST /v1/track`, `/v1/batch`), fields in the vendor's order."
)
_IDENTIFY_DESCRIPTION = "The link between a visitor and a person (`POST /v1/identify`)."


def schemas() -> dict[str, Any]:
    """Return one schema for each event by its kind, under `$defs` of one document.

    An event of either kind is valid against the document; against one kind, by
    `#/$defs/track` or `#/$defs/identify`.
    """
    return {
        "$schema": DRAFT,
        "title": "Events of mm_tasks",
        "$comment": _COMMENT,
        "oneOf": [{"$ref": f"#/$defs/{kind}"} for kind in (TRACK, IDENTIFY)],
        "$defs": {
            TRACK: _schema("TrackEvent", _TRACK_DESCRIPTION, TRACK_FIELDS),
            IDENTIFY: _schema("IdentifyEvent", _IDENTIFY_DESCRIPTION, IDENTIFY_FIELDS),
        },
    }


def _schema(title: str, description: str, fields: Mapping[str, EventField]) -> dict[str, Any]:
    return {
        "title": title,
        "description": description,
        "type": "object",
        "properties": {name: _field_schema(field) for name, field in fields.items()},
        "required": [name for name, field in fields.items() if field.is_required],
        "additionalProperties": False,
    }


def _field_schema(field: EventField) -> dict[str, Any]:
    """Return the schema of one field; an optional one may be null."""
    kind = "string" if field.characters_max else "object"
    schema: dict[str, Any] = {
        "type": kind if field.is_required else [kind, "null"],
        "description": field.description,
    }
    if not field.characters_max:
        return {**schema, "description": f"{field.description} {_FREE}"}
    schema |= {"minLength": 1, "maxLength": field.characters_max}
    return {**schema, "pattern": field.pattern} if field.pattern else schema
