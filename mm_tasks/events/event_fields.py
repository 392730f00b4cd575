"""The fields of events: one table for each call, in the vendor's order.

`rules` builds the validators from it, `json_schema` the JSON Schema and `context` its names.
The types for editors are in `typed_dicts`; `tests/typing` compares them with this table.
"""

from __future__ import annotations

from typing import NamedTuple

from mm_tasks.events import limits

# Patterns mean the same in ECMAScript, Python and Rust. Hence no \s: ECMAScript's includes
# U+FEFF; Rust's does not, nor does the vendor's URL parser. The URL is sent as the caller wrote
# it, so characters that a parser would strip or repair are refused.
_SPACES_AND_CONTROLS = (
    r"\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
)
_URL_PATTERN = rf"^[A-Za-z][A-Za-z0-9+.\-]*://[^{_SPACES_AND_CONTROLS}]*$"
_TIMESTAMP_PATTERN = r"T.*(Z|[+\-][0-9]{2}[0-9:.,]*)$"


class EventField(NamedTuple):
    """A text of 1 to `characters_max` UTF-16 code units, or, if that is 0, a JSON object."""

    description: str
    characters_max: int = 0
    pattern: str | None = None
    is_required: bool = False


_VISITOR = EventField("The visitor, as the browser knows them.", limits.ID_CHARACTERS_MAX)
_PERSON = EventField("The person, once known.", limits.USER_ID_CHARACTERS_MAX)
_NAME = "What happened: snake_case, past tense; `$…` for systems."
_TIME = "When; aware datetime or ISO with an offset."
_PAGE = "Absolute; the vendor reads utm_* and click ids here."

# The fields that a `context` may hold.
SHARED_FIELDS = {
    "anonymous_id": _VISITOR,
    "user_id": _PERSON,
    "session_id": EventField("The vendor derives one when absent.", limits.ID_CHARACTERS_MAX),
    "url": EventField(_PAGE, limits.URL_CHARACTERS_MAX, _URL_PATTERN),
    "path": EventField("The path shown in reports.", limits.URL_CHARACTERS_MAX),
    "referrer": EventField("The vendor derives the source from it.", limits.URL_CHARACTERS_MAX),
}
TRACK_FIELDS = {
    "event": EventField(_NAME, limits.EVENT_NAME_CHARACTERS_MAX, is_required=True),
    "event_id": EventField("Made up (UUIDv7) when absent.", limits.ID_CHARACTERS_MAX),
    "timestamp": EventField(_TIME, limits.TIMESTAMP_CHARACTERS_MAX, _TIMESTAMP_PATTERN),
    **SHARED_FIELDS,
    "properties": EventField("See `mm_tasks.events.properties`."),
}
IDENTIFY_FIELDS = {
    "anonymous_id": _VISITOR._replace(is_required=True),
    "user_id": _PERSON._replace(description="The person.", is_required=True),
    "traits": EventField("As `properties` of an event."),
}
