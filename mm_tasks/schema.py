"""JSON Schema of the events, for programs in other languages and for editors.

The names, types and descriptions are the models' own. What JSON Schema cannot say (a limit in
bytes, a date that exists) is said in the descriptions: valid here does not mean accepted
by `events`, but what is refused here is refused there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks import limits
from mm_tasks.events import IDENTIFY, TRACK, IdentifyEvent, TrackEvent

if TYPE_CHECKING:
    from pydantic import BaseModel

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# As `events` reads them; ECMA's \s and control characters for Rust's.
_URL_PATTERN = r"^[A-Za-z][A-Za-z0-9+.\-]*://[^\s\u0000-\u0020\u007f-\u009f]*$"
_TIMESTAMP_CHARACTERS_MAX = 64
_FREE = (
    f"At most {limits.PROPERTIES_BYTES_MAX} bytes as JSON (8 KB), "
    f"{limits.PROPERTIES_DEPTH_MAX} levels; integers within ±{limits.INTEGER_MAX}, no NaN, "
    "no lone surrogates."
)
_COMMENT = "maxLength: the vendor counts UTF-16 code units, JSON Schema counts characters."


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
        "$defs": {TRACK: _schema(TrackEvent), IDENTIFY: _schema(IdentifyEvent)},
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    made = model.model_json_schema()
    fields = {name: _field(name, given) for name, given in made["properties"].items()}
    return {
        "title": made["title"],
        "description": made["description"],
        "type": "object",
        "properties": fields,
        "required": made["required"],
        "additionalProperties": False,
    }


def _field(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of one field. None is Python's "not given" and no JSON."""
    kinds = [kind for kind in given.get("anyOf", [given]) if kind.get("type") != "null"]
    assert len(kinds) == 1, name
    known = {key: value for key, value in kinds[0].items() if key not in {"title", "default"}}
    field = {**known, "description": given["description"]}
    if field["type"] == "object":
        return {"type": "object", "description": f"{given['description']} {_FREE}"}
    if name == "timestamp":
        field |= {"format": "date-time", "minLength": 1, "maxLength": _TIMESTAMP_CHARACTERS_MAX}
    if name == "url":
        field |= {"format": "uri", "pattern": _URL_PATTERN}
    return field
