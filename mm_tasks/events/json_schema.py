"""JSON Schema of the events, for programs in other languages and for editors.

The names, types and descriptions are the models' own. What is refused here, `events` refuses.
Valid here does not mean accepted there: what JSON Schema cannot say (a limit in bytes, a date
that exists) is said in words. No `format`: a validator that checks it refuses times and URLs
that a call takes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.events import limits
from mm_tasks.events.lanes import IDENTIFY, TRACK
from mm_tasks.events.models import IdentifyEvent, TrackEvent

if TYPE_CHECKING:
    from pydantic import BaseModel

DRAFT = "https://json-schema.org/draft/2020-12/schema"
# As `events` reads them, in what ECMA, Python and Rust read alike: to ECMA's \s, U+FEFF is a
# space; to Rust's, as to the vendor's URL parser, it is not.
_SPACES_AND_CONTROLS = (
    r"\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
)
_PATTERNS = {
    "timestamp": r"T.*(Z|[+\-][0-9]{2}[0-9:.,]*)$",
    "url": rf"^[A-Za-z][A-Za-z0-9+.\-]*://[^{_SPACES_AND_CONTROLS}]*$",
}
_TIMESTAMP_CHARACTERS_MAX = 64
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
    """Return the schema of one field; one that may be absent may be null."""
    kinds = {kind["type"]: kind for kind in given.get("anyOf", [given])}
    is_optional = kinds.pop("null", None) is not None
    ((type_, known),) = kinds.items()
    field = {
        "type": [type_, "null"] if is_optional else type_,
        "description": given["description"],
    }
    if type_ == "object":
        return {**field, "description": f"{given['description']} {_FREE}"}
    field |= {key: known[key] for key in ("minLength", "maxLength") if key in known}
    if name == "timestamp":
        field |= {"minLength": 1, "maxLength": _TIMESTAMP_CHARACTERS_MAX}
    if name in _PATTERNS:
        field["pattern"] = _PATTERNS[name]
    return field
