"""Properties: conversions, positions of problems, and the size in JavaScript."""

import enum
import json
import math
from collections import OrderedDict, defaultdict
from datetime import UTC, date, datetime
from decimal import Decimal
from uuid import UUID

import pytest
import uuid_utils
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.errors import EventTooLarge, InvalidEvent
from mm_tasks.events.encode import encode_track


class Level(enum.IntEnum):
    HIGH = 3


class Nested(enum.Enum):
    COLOUR = "red"
    LEVEL = Level.HIGH
    WHEN = date(2026, 1, 2)


class Metres(float):
    def __repr__(self):
        return "far"


class Count(int):
    def __repr__(self):
        return "many"


def text_of(properties):
    """Return the JSON of the properties exactly as it will be sent."""
    body = encode_track({"event": "e", "properties": properties}).body.decode()
    return body.partition('"properties":')[2][:-1]


def sent(properties):
    return json.loads(text_of(properties))


def refusal(properties):
    with pytest.raises(InvalidEvent) as caught:
        text_of(properties)
    return caught.value


CONVERTED = {
    "Enum of text": (Nested.COLOUR, "red"),
    "date": (date(2026, 1, 2), "2026-01-02"),
    "Enum of an IntEnum": (Nested.LEVEL, 3),
    "Enum of a date": (Nested.WHEN, "2026-01-02"),
    "IntEnum": (Level.HIGH, 3),
    "float subclass": (Metres(1.5), 1.5),
    "int subclass": (Count(7), 7),
    "tuple in a tuple": ((1, (2, [])), [1, [2, []]]),
    "UUID": (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "uuid_utils.UUID": (uuid_utils.UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    "aware datetime": (datetime(2026, 1, 2, 3, 4, 5, 999_999, UTC), "2026-01-02T03:04:05.999Z"),
    "defaultdict": (defaultdict(list, a=[]), {"a": []}),
    "float beyond 2^53": (1e20, 1e20),
}


@pytest.mark.parametrize(("value", "expected"), CONVERTED.values(), ids=CONVERTED.keys())
def test_a_value_is_converted_as_documented_at_any_depth(value, expected):
    assert sent({"a": value, "b": [{"c": value}]}) == {"a": expected, "b": [{"c": expected}]}


EXACT = {
    "empty list and object": ({"a": [], "b": {}}, '{"a":[],"b":{}}'),
    "largest safe integer": ({"a": 2**53 - 1}, '{"a":9007199254740991}'),
    "least safe integer": ({"a": 1 - 2**53}, '{"a":-9007199254740991}'),
    "small float": ({"a": -1.5e-7}, '{"a":-1.5e-7}'),
    "emoji and U+2028": ({"\U0001f600": "\u2028"}, '{"\U0001f600":"\u2028"}'),
    "control character": ({"a": "\x00\n"}, '{"a":"\\u0000\\n"}'),
    "quote and backslash": ({"a": '"\\/'}, '{"a":"\\"\\\\/"}'),
    "keys keep their order": ({"b": 1, "a": 2, "1": 3}, '{"b":1,"a":2,"1":3}'),
    "order of an OrderedDict": (OrderedDict(z=1, a=2), '{"z":1,"a":2}'),
    "odd names": ({"__proto__": 1, "": 2}, '{"__proto__":1,"":2}'),
    "empty inside": ({"a": [[], [{}]], "b": 0}, '{"a":[[],[{}]],"b":0}'),
    "true is not 1": ({"a": True, "b": 1, "c": None}, '{"a":true,"b":1,"c":null}'),
}


@pytest.mark.parametrize(("properties", "text"), EXACT.values(), ids=EXACT.keys())
def test_legal_properties_are_sent_as_exactly_this_text(properties, text):
    assert text_of(properties) == text


NOT_FINITE = "must be finite: JSON has no NaN and no infinity"
SURROGATE = "must not hold lone surrogates"
PLACES = {
    "second entry, then first": (
        {"x": 1, "y": [math.nan]},
        f"{NOT_FINITE} (entry 2, then entry 1)",
    ),
    "key": ({"x": 1, 2: 3}, "must have text as its key (entry 2)"),
    "lone surrogate in a value": ({"x": ["", "\ud800"]}, f"{SURROGATE} (entry 1, then entry 2)"),
    "lone surrogate in a key": ({"x": {"\ud800": 1}}, f"{SURROGATE} (entry 1, then entry 1)"),
}


@pytest.mark.parametrize(("properties", "rule"), PLACES.values(), ids=PLACES.keys())
def test_a_problem_is_placed_by_position(properties, rule):
    """Keys may be personal data as much as values are."""
    assert [(p.field, p.rule) for p in refusal(properties).problems] == [("properties", rule)]


def test_all_problems_inside_are_listed_up_to_twenty():
    assert len(refusal({"a": math.nan, "b": {1: b"", "c": 2**60}}).problems) == 4
    assert len(refusal({str(i): object() for i in range(1000)}).problems) == 20


def test_a_decimal_is_refused_with_what_to_send_instead():
    assert "send integer cents, or str()/float() of it" in str(refusal({"price": Decimal("9.90")}))


# What node prints for JSON.stringify of each (v20).
AS_JAVASCRIPT = {
    1e20: "100000000000000000000",
    1e16: "10000000000000000",
    1e21: "1e+21",
    -1.5e20: "-150000000000000000000",
    1.2345678901234567e19: "12345678901234567000",
    1e-6: "0.000001",
    1.5e-6: "0.0000015",
    -1e-5: "-0.00001",
    1e-7: "1e-7",
    123456.789: "123456.789",
    5.0: "5",
    -0.0: "0",
    1.7976931348623157e308: "1.7976931348623157e+308",
    5e-324: "5e-324",
    -1.2345678901234567e-6: "-0.0000012345678901234567",
    1.5e-5: "0.000015",
    1234567890123456.5: "1234567890123456.5",
}


def test_an_object_of_exactly_8192_bytes_is_the_largest_accepted():
    fitting = "x" * (8192 - len('{"a":""}'))
    assert len(text_of({"a": fitting})) == 8192

    assert type(refusal({"a": fitting + "x"})) is EventTooLarge


@pytest.mark.parametrize("number", AS_JAVASCRIPT, ids=repr)
def test_the_size_limit_holds_for_the_text_javascript_prints(number):
    """The vendor measures after JSON.stringify, whose numbers may be longer than ours.

    A number that we print with an exponent counts as the longest of JavaScript's.
    """
    ours = text_of({"a": [number]})[len('{"a":[') : -len("]}")]
    longest = 25 if "e" in ours else len(ours)
    assert len(AS_JAVASCRIPT[number]) <= longest
    count, rest = divmod(8192 - len('{"a":[],"b":""}') + 1, longest + 1)
    fitting = {"a": [number] * count, "b": "x" * rest}

    assert sent(fitting) == fitting
    error = refusal(fitting | {"b": "x" * (rest + 1)})
    assert type(error) is EventTooLarge
    assert "8193 bytes" in str(error)


@pytest.mark.parametrize(
    "make", [lambda inner: {"a": inner}, lambda inner: [inner]], ids=["dicts", "lists"]
)
def test_32_levels_are_the_deepest_accepted(make):
    inside = 1
    for _ in range(31):
        inside = make(inside)

    sent({"a": inside})
    assert "nested deeper than 32" in str(refusal({"a": make(inside)}))


ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.one_of(st.integers(2**53 - 3, 2**53 + 3), st.binary(max_size=2), st.dates(), st.uuids()),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=4)
    ),
    max_leaves=25,
)


def depth(value):
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max(map(depth, inner), default=0) if isinstance(value, dict | list) else 0


def leaves(value):
    if isinstance(value, dict):
        return [leaf for pair in value.items() for item in pair for leaf in leaves(item)]
    if isinstance(value, list):
        return [leaf for item in value for leaf in leaves(item)]
    return [value]


@given(st.dictionaries(st.text(st.characters()) | st.integers(), ANYTHING, max_size=6))
def test_accepted_properties_keep_the_vendors_limits(properties):
    try:
        text = text_of(properties)
    except InvalidEvent:
        return
    integers = []
    value = json.loads(text, parse_constant=pytest.fail, parse_int=integers.append)

    assert len(text.encode()) <= 8192
    assert depth(value) <= 32
    assert all(abs(int(digits)) < 2**53 for digits in integers)


def plain(value):
    """Convert a value independently of the code under test; raise ValueError if it is illegal."""
    if isinstance(value, bytes) or (isinstance(value, int) and abs(value) >= 2**53):
        raise ValueError
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError
    if isinstance(value, str):
        value.encode()
    if isinstance(value, date | UUID):
        return str(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError
        return {plain(key): plain(item) for key, item in value.items()}
    return value


@given(st.dictionaries(st.text(st.characters(), max_size=9) | st.integers(), ANYTHING, max_size=6))
def test_exactly_legal_properties_are_accepted_and_arrive_converted(properties):
    """An oracle: the same rules in fifteen lines, regardless of speed."""
    try:
        expected = plain(properties)
    except ValueError:  # UnicodeEncodeError is one
        refusal(properties)
        return

    assert sent(properties) == expected
