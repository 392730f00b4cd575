"""The JSON Schema says no more than the models, and as much as it can."""

from __future__ import annotations

import json
import re

import pytest

from mm_tasks import events, limits
from mm_tasks.schema import DRAFT, schemas


@pytest.mark.parametrize(
    ("kind", "model"), [("track", events.TrackEvent), ("identify", events.IdentifyEvent)]
)
def test_each_field_of_the_model_is_there_with_its_limit(kind, model):
    found = schemas()["$defs"][kind]
    texts = {
        name: field for name, field in found["properties"].items() if field["type"] == "string"
    }

    assert list(found["properties"]) == list(model.model_fields)
    assert found["required"] == [n for n, f in model.model_fields.items() if f.is_required()]
    assert found["additionalProperties"] is False
    assert all(field["description"] for field in found["properties"].values())
    assert {name: field["maxLength"] for name, field in texts.items()} == {
        name: events._CHARACTERS_MAX[name]  # noqa: SLF001 - where they are kept
        for name in texts
    }


def test_what_a_length_cannot_say_is_said_in_words():
    free = schemas()["$defs"]["track"]["properties"]["properties"]

    assert free["type"] == "object"
    assert str(limits.PROPERTIES_BYTES_MAX) in free["description"]


def test_it_is_json_of_the_draft_it_names():
    found = json.loads(json.dumps(schemas()))

    assert found["$schema"] == DRAFT
    assert all(f"#/$defs/{kind}" in json.dumps(found["oneOf"]) for kind in found["$defs"])


@pytest.mark.parametrize("url", ["https://a.b/c?d=e", "app+x://y"])
def test_the_pattern_of_a_url_takes_what_a_call_takes(url):
    pattern = schemas()["$defs"]["track"]["properties"]["url"]["pattern"]

    assert re.search(pattern, url)
    assert events.encode_track({"event": "e", "url": url})


@pytest.mark.parametrize("url", ["/a", "a b://c", "https://a b", "https://a\n"])
def test_the_pattern_of_a_url_refuses_only_what_a_call_refuses(url):
    pattern = schemas()["$defs"]["track"]["properties"]["url"]["pattern"]

    assert not re.search(pattern.replace("$", r"\Z"), url)
    with pytest.raises(events.InvalidEvent):
        events.encode_track({"event": "e", "url": url})
