"""What is refused at the door, and that nothing legal is changed."""

from __future__ import annotations

import json
import math
import traceback
from datetime import UTC, date, datetime
from decimal import Decimal
from enum import Enum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.errors import EventTooLarge, InvalidEvent
from mm_tasks.events import encode_identify, encode_track
from mm_tasks.limits import INTEGER_MAX

SECRET = "s3cretmarker"
CYCLE: list = []
CYCLE.append(CYCLE)


def nested(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


class Colour(Enum):
    RED = "red"


BAD = {
    "no event": {},
    "event is None": {"event": None},
    "event is empty": {"event": ""},
    "event is a number": {"event": 1},
    "event is bytes": {"event": SECRET.encode()},
    "event too long": {"event": SECRET * 11},
    "event too long in UTF-16": {"event": "\U0001f600" * 65},
    "event with a lone surrogate": {"event": SECRET + "\ud800"},
    "id is a number": {"event": "e", "user_id": 42},
    "id is a bool": {"event": "e", "user_id": True},
    "id is empty": {"event": "e", "anonymous_id": ""},
    "anonymous_id too long": {"event": "e", "anonymous_id": SECRET * 11},
    "user_id too long": {"event": "e", "user_id": SECRET * 22},
    "event_id too long": {"event": "e", "event_id": SECRET * 11},
    "session_id is a list": {"event": "e", "session_id": [SECRET]},
    "url is relative": {"event": "e", "url": "/" + SECRET},
    "url without a scheme": {"event": "e", "url": f"localhost:3000/{SECRET}"},
    "url without a host": {"event": "e", "url": "https://"},
    "url with a space": {"event": "e", "url": f"https://a.example/ {SECRET}"},
    "url too long": {"event": "e", "url": "https://a.example/" + SECRET * 200},
    "path too long": {"event": "e", "path": SECRET * 200},
    "referrer is empty": {"event": "e", "referrer": ""},
    "timestamp is naive": {"event": "e", "timestamp": datetime(2026, 1, 1)},  # noqa: DTZ001
    "timestamp is naive text": {"event": "e", "timestamp": "2026-01-01T00:00:00"},
    "timestamp is a date": {"event": "e", "timestamp": "2026-01-01"},
    "timestamp is nonsense": {"event": "e", "timestamp": SECRET},
    "timestamp is a number": {"event": "e", "timestamp": 1767225600},
    "timestamp before year 1": {"event": "e", "timestamp": "0001-01-01T00:00:00+05:00"},
    "computed field": {"event": "e", "source": SECRET},
    "unknown field": {"event": "e", "usr_id": SECRET},
    "field with a strange name": {"event": "e", f"{SECRET} x": 1},
    "properties is a list": {"event": "e", "properties": [SECRET]},
    "properties is text": {"event": "e", "properties": SECRET},
    "NaN": {"event": "e", "properties": {SECRET: math.nan}},
    "infinity deep inside": {"event": "e", "properties": {"a": [{SECRET: -math.inf}]}},
    "integer too large": {"event": "e", "properties": {SECRET: 2**53}},
    "integer too small": {"event": "e", "properties": {SECRET: -(2**53)}},
    "integer of 5000 digits": {"event": "e", "properties": {SECRET: 10**5000}},
    "key is a number": {"event": "e", "properties": {1: SECRET}},
    "key with a lone surrogate": {"event": "e", "properties": {SECRET + "\udfff": 1}},
    "value with a lone surrogate": {"event": "e", "properties": {"a": [SECRET + "\ud800"]}},
    "bytes inside": {"event": "e", "properties": {"a": SECRET.encode()}},
    "set inside": {"event": "e", "properties": {"a": {SECRET}}},
    "object inside": {"event": "e", "properties": {"a": object()}},
    "Decimal inside": {"event": "e", "properties": {"a": Decimal("1.10")}},
    "naive time inside": {"event": "e", "properties": {"a": datetime(2026, 1, 1)}},  # noqa: DTZ001
    "cycle": {"event": "e", "properties": {"a": CYCLE}},
    "nested too deep": {"event": "e", "properties": nested(33)},
    "properties too large": {"event": "e", "properties": {"a": SECRET * 700}},
    "too large in UTF-8": {"event": "e", "properties": {"a": "é" * 4090 + SECRET}},
    "too large as JavaScript prints it": {"event": "e", "properties": {"a": [1e20] * 400}},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_without_its_value(fields):
    """A message, and the traceback a logger prints, outlive an erasure."""
    with pytest.raises(InvalidEvent) as caught:
        encode_track(fields)
    printed = "".join(traceback.format_exception(caught.value)) + repr(caught.value)

    assert SECRET not in printed
    assert caught.value.__context__ is None


BAD_IDENTIFIES = {
    "no anonymous_id": {"user_id": "u"},
    "no user_id": {"anonymous_id": "a"},
    "user_id is a number": {"anonymous_id": "a", "user_id": 1},
    "anonymous_id is empty": {"anonymous_id": "", "user_id": "u"},
    "traits is a list": {"anonymous_id": "a", "user_id": "u", "traits": []},
    "unknown field": {"anonymous_id": "a", "user_id": "u", "plan": "pro"},
    "user_id too long": {"anonymous_id": "a", "user_id": "u" * 257},
}


@pytest.mark.parametrize("fields", BAD_IDENTIFIES.values(), ids=BAD_IDENTIFIES.keys())
def test_a_bad_identify_is_refused(fields):
    with pytest.raises(InvalidEvent):
        encode_identify(fields)


HOSTILE = [
    {"text": 'quotes " and \\ and \u2028 and \u2029 and \U0001f600 and \x00'},
    {"number": INTEGER_MAX, "least": -INTEGER_MAX, "tiny": -1.5e-7, "zero": 0, "one": 1.0},
    {"empty": [], "object": {}, "deep": [[], [{}]], "none": None, "no": False},
    {"__proto__": 1, "": 2, "1": 3},
    nested(32),
]


@pytest.mark.parametrize("properties", HOSTILE)
def test_legal_but_hostile_properties_survive(properties):
    assert (
        json.loads(encode_track({"event": "$x", "properties": properties}).body)["properties"]
        == properties
    )


def test_types_beyond_json_are_converted_as_documented():
    given_properties = {
        "time": datetime(2026, 1, 2, 3, 4, 5, 678_999, UTC),
        "day": date(2026, 1, 2),
        "id": UUID(int=1),
        "colour": Colour.RED,
        "pair": (1, 2),
    }
    body = encode_track({"event": "e", "properties": given_properties}).body

    assert json.loads(body)["properties"] == {
        "time": "2026-01-02T03:04:05.678Z",
        "day": "2026-01-02",
        "id": "00000000-0000-0000-0000-000000000001",
        "colour": "red",
        "pair": [1, 2],
    }


def test_a_timestamp_is_normalised_to_utc_with_milliseconds():
    encoded = encode_track({"event": "e", "timestamp": "2026-01-01T01:30:00+01:30"})

    assert json.loads(encoded.body)["timestamp"] == "2026-01-01T00:00:00.000Z"


def test_none_means_not_given():
    assert b"user_id" not in encode_track({"event": "e", "user_id": None}).body


def test_an_event_that_fits_no_batch_is_refused_by_its_size():
    with pytest.raises(EventTooLarge):
        encode_track({"event": "e", "path": "p" * 900}, bytes_max=900)


def test_all_broken_rules_are_named_at_once():
    with pytest.raises(InvalidEvent) as caught:
        encode_track({"event": 1, "user_id": 2, "url": "x", "properties": []})

    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"event", "user_id", "url", "properties"}


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-INTEGER_MAX, INTEGER_MAX)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), JSON, max_size=5))
def test_whatever_is_accepted_arrives_equal(properties):
    body = encode_track({"event": "e", "properties": properties}).body

    assert json.loads(body).get("properties") == properties
