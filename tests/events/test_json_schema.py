"""The JSON Schema says no more than the models, and as much as it can."""

import contextlib
import json
import re

import pytest

from mm_tasks.errors import InvalidEvent
from mm_tasks.events import limits
from mm_tasks.events.encode import encode_identify, encode_track
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS
from mm_tasks.events.json_schema import DRAFT, schemas


@pytest.mark.parametrize(
    ("kind", "table"), [("track", TRACK_FIELDS), ("identify", IDENTIFY_FIELDS)]
)
def test_each_field_of_the_table_is_there_with_its_limit(kind, table):
    schema = schemas()["$defs"][kind]
    fields = schema["properties"]

    assert list(fields) == list(table)
    assert schema["required"] == [name for name, field in table.items() if field.is_required]
    assert schema["additionalProperties"] is False
    assert all(field["description"] for field in fields.values())
    assert {name: field["maxLength"] for name, field in fields.items() if "maxLength" in field} == {
        name: field.characters_max for name, field in table.items() if field.characters_max
    }


def test_it_is_json_of_its_draft_and_describes_the_limits_that_json_schema_cannot_express():
    schema = json.loads(json.dumps(schemas()))
    free = schema["$defs"]["track"]["properties"]["properties"]

    assert schema["$schema"] == DRAFT
    assert all(f"#/$defs/{kind}" in json.dumps(schema["oneOf"]) for kind in schema["$defs"])
    assert "object" in free["type"]
    assert str(limits.PROPERTIES_BYTES_MAX) in free["description"]
    # A validator that checks `date-time` or `uri` refuses times and URLs that are accepted.
    assert '"format"' not in json.dumps(schema)


ACCEPTED = [
    *("https://a.b/c?d=e", "app+x://y", "https://bücher.example/{x}|^", "https://a.b/\ufeff"),
    *("2026-01-14T09:00Z", "20260114T090000+01", "2026-W03-3T09:00:00,5-01:30:15.25"),
]
REFUSED = ["/a", "a b://c", "https://a b", "https://a\n", "https://a\u3000", "https://a\x85"]
REFUSED += ["2026-01-14", "2026-01-14T09:00", "2026-01-14 09:00Z"]


@pytest.mark.parametrize(
    ("text", "is_accepted"), [*((t, True) for t in ACCEPTED), *((t, False) for t in REFUSED)]
)
def test_a_pattern_accepts_a_text_exactly_if_a_call_accepts_it(text, is_accepted):
    """An event that a call accepts must be valid, however unusual."""
    name = "timestamp" if text[0] == "2" else "url"
    pattern = schemas()["$defs"]["track"]["properties"][name]["pattern"]

    assert bool(re.search(pattern.replace("$", r"\Z"), text)) is is_accepted
    with contextlib.nullcontext() if is_accepted else pytest.raises(InvalidEvent):
        assert encode_track({"event": "e", name: text})


@pytest.mark.parametrize(
    ("kind", "encode", "least"),
    [
        ("track", encode_track, {"event": "e"}),
        ("identify", encode_identify, {"anonymous_id": "a", "user_id": "u"}),
    ],
)
def test_null_is_valid_for_each_optional_field(kind, encode, least):
    """Files for `mm-tasks import` come from languages that write absent fields as null."""
    fields = schemas()["$defs"][kind]["properties"]
    nullable = {name for name, field in fields.items() if "null" in field["type"]}

    assert nullable == fields.keys() - least.keys()
    assert encode({**dict.fromkeys(fields), **least})
