"""Events that a call refuses, and legal ones that it sends unchanged."""

import enum
import json
import math
import traceback
from datetime import UTC, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from types import MappingProxyType
from uuid import UUID

import pytest

from mm_tasks.errors import EventTooLarge, InvalidEvent
from mm_tasks.events.encode import encode_identify, encode_track
from mm_tasks.events.event_fields import IDENTIFY_FIELDS, TRACK_FIELDS

SECRET = "s3cretmarker"
CYCLE: list = []
CYCLE.append(CYCLE)


def nested(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


class Angry(Enum):
    VALUE = object()


def fail(*_):
    """Raise the secret, as any method of a hostile object may."""
    raise RuntimeError(SECRET)


class Raises:
    """Raises in every method."""

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = fail
    __class__ = property(fail)


class RaisingDict(dict):
    items = values = keys = __iter__ = __getitem__ = __repr__ = fail


class RaisingList(list):
    __iter__ = fail


class RaisingZone(tzinfo):
    utcoffset = fail


class Endless(dict):
    def items(self):
        while True:
            yield "a", SECRET


class Loud(str):
    """Text that prints as another text than it holds."""

    __slots__ = ()

    def __str__(self):
        return SECRET

    __repr__ = __str__


def shared(width, levels):
    """Return a small object whose JSON is width ** levels entries long."""
    value = [1] * width
    for _ in range(levels - 1):
        value = [value] * width
    return value


WIDE_CYCLE: list = []
WIDE_CYCLE += [WIDE_CYCLE, WIDE_CYCLE]

RAISING_TIME = datetime(2026, 1, 1, tzinfo=RaisingZone())
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
    "session_id is a list": {"event": "e", "session_id": [SECRET]},
    "url is relative": {"event": "e", "url": "/" + SECRET},
    "url without a scheme": {"event": "e", "url": f"localhost:3000/{SECRET}"},
    "url without a host": {"event": "e", "url": "https://"},
    "url with a space": {"event": "e", "url": f"https://a.example/ {SECRET}"},
    "url too long": {"event": "e", "url": "https://a.example/" + SECRET * 200},
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
    "fields are None": None,
    "fields are a list": [SECRET],
    "fields are a generator": (name for name in [SECRET]),
    "fields raise": RaisingDict(event="e"),
    "fields never end": Endless(),
    "field name is a number": {"event": "e", 1: SECRET},
    "field name with a lone surrogate": {"event": "e", SECRET + "\ud800": 1},
    "misspelt field that is None": {"event": "e", "usr_id": None},
    "event raises": {"event": Raises()},
    "id raises": {"event": "e", "user_id": Raises()},
    "id of 5000 digits": {"event": "e", "user_id": 10**5000},
    "id with a lone surrogate": {"event": "e", "anonymous_id": SECRET + "\udfff"},
    "path is empty": {"event": "e", "path": ""},
    "event_id is empty": {"event": "e", "event_id": ""},
    "url is relative to the scheme": {"event": "e", "url": f"//a.example/{SECRET}"},
    "url without //": {"event": "e", "url": f"mailto:{SECRET}@a.example"},
    "url with // elsewhere": {"event": "e", "url": f"mailto:{SECRET}://a"},
    "url with backslashes": {"event": "e", "url": f"https:\\\\a\\{SECRET}://"},
    "url with a line break": {"event": "e", "url": f"https://a.example/{SECRET}\n"},
    "url with U+2028": {"event": "e", "url": f"https://a.example/\u2028{SECRET}"},
    "url with a no-break space": {"event": "e", "url": f"https://a.example/\xa0{SECRET}"},
    "url with a bad port": {"event": "e", "url": f"https://a.example:99999/{SECRET}"},
    "url with a bad IPv4": {"event": "e", "url": f"https://1.2.3.400/{SECRET}"},
    "timestamp after year 9999": {"event": "e", "timestamp": "9999-12-31T23:59:59-05:00"},
    "timestamp with a space": {"event": "e", "timestamp": "2026-01-01 00:00:00Z"},
    "timestamp without a time": {"event": "e", "timestamp": "2026-01-01T"},
    "timestamp with a leap second": {"event": "e", "timestamp": "2026-01-01T23:59:60Z"},
    "timestamp is huge": {"event": "e", "timestamp": "T" * 10**6},
    "timestamp is a bool": {"event": "e", "timestamp": True},
    "timestamp is empty": {"event": "e", "timestamp": ""},
    "timestamp whose zone raises": {"event": "e", "timestamp": RAISING_TIME},
    "properties raise": {"event": "e", "properties": RaisingDict(a=1)},
    "properties never end": {"event": "e", "properties": Endless()},
    "properties are a mapping but no dict": {"event": "e", "properties": MappingProxyType({})},
    "list inside raises": {"event": "e", "properties": {"a": RaisingList([1])}},
    "Enum of an object": {"event": "e", "properties": {"a": Angry.VALUE}},
    "timedelta inside": {"event": "e", "properties": {"a": timedelta(1)}},
    "complex number inside": {"event": "e", "properties": {"a": 1j}},
    "cycle of dicts": {"event": "e", "properties": {"a": {"b": WIDE_CYCLE}}},
    "shared list of 10^8 entries": {"event": "e", "properties": {"a": shared(10, 8)}},
    "a million entries": {"event": "e", "properties": dict.fromkeys(map(str, range(10**6)), 1)},
    "nested 100 000 deep": {"event": "e", "properties": nested(100_000)},
}


def evidence(error):
    """Return all that a logger could print of an error and of what it is chained to."""
    printed = "".join(traceback.format_exception(error)) + str(error) + repr(error)
    while (error := error.__cause__ or error.__context__) is not None:
        printed += repr(error)
    return printed


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_without_its_value(fields):
    """A message, and the traceback a logger prints, outlive an erasure."""
    with pytest.raises(InvalidEvent) as caught:
        encode_track(fields)

    assert SECRET not in evidence(caught.value)
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


def test_every_field_is_sent_in_the_order_of_the_vendors_table():
    texts = dict.fromkeys(reversed(TRACK_FIELDS), "x")
    times_and_urls = {"timestamp": "2026-01-01T00:00:00.000Z", "url": "https://a.example/"}
    body = encode_track({**texts, **times_and_urls, "properties": {"b": 1, "a": 2}}).body

    assert list(json.loads(body)) == list(TRACK_FIELDS)
    assert body.endswith(b'"referrer":"x","properties":{"b":1,"a":2}}')


def test_a_plain_event_needs_no_id_and_gets_an_event_id_and_a_time():
    encoded = encode_track({"event": "$pageview"})
    body = json.loads(encoded.body)

    assert (encoded.user_id, encoded.anonymous_id) == (None, None)
    assert encoded.id == body["event_id"]
    assert UUID(encoded.id).version == 7
    assert abs(datetime.now(UTC) - datetime.fromisoformat(body["timestamp"])) < timedelta(minutes=1)


def test_an_identify_has_an_id_that_is_not_sent():
    encoded = encode_identify({"user_id": "u", "anonymous_id": "a", "traits": {"plan": "pro"}})

    assert encoded.body == b'{"anonymous_id":"a","user_id":"u","traits":{"plan":"pro"}}'
    assert UUID(encoded.id).version == 7
    assert list(IDENTIFY_FIELDS) == list(json.loads(encoded.body))


def test_text_of_a_subclass_is_sent_and_tagged_as_the_text_it_holds():
    """A fence's tag made from another text than was sent would let an erased person through."""

    class Plan(enum.StrEnum):
        USER = "user_42"

    encoded = encode_track({"event": Loud("e"), "user_id": Plan.USER, "anonymous_id": Loud("a")})

    assert (encoded.user_id, encoded.anonymous_id) == ("user_42", "a")
    assert {type(encoded.user_id), type(encoded.anonymous_id)} == {str}
    assert SECRET.encode() not in encoded.body


TIMES = {
    "2026-01-01T01:30:00+01:30": "2026-01-01T00:00:00.000Z",
    "2026-01-01T00:00:00.999999Z": "2026-01-01T00:00:00.999Z",
    "2026-01-01T00:00Z": "2026-01-01T00:00:00.000Z",
    "2026-01-01T00:00:00-00:30": "2026-01-01T00:30:00.000Z",
    "0001-01-01T00:00:00.000Z": "0001-01-01T00:00:00.000Z",
    "1969-12-31T23:59:59.001Z": "1969-12-31T23:59:59.001Z",
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=14))): "2025-12-31T10:00:00.000Z",
}


@pytest.mark.parametrize("when", TIMES, ids=str)
def test_a_time_is_truncated_and_moved_to_utc(when):
    body = encode_track({"event": "e", "timestamp": when}).body

    assert json.loads(body)["timestamp"] == TIMES[when]


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost:3000",
        "https://münchen.example/ü?utm_source=a&x=://#f",
        "app://screen/home",
        "https://[::1]/",
    ],
)
def test_a_legal_url_is_sent_as_it_was_given(url):
    assert json.loads(encode_track({"event": "e", "url": url}).body)["url"] == url


LENGTHS = dict.fromkeys(["event", "event_id", "anonymous_id", "session_id"], 128)
LENGTHS |= {"user_id": 256, "path": 2048, "referrer": 2048}


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
@pytest.mark.parametrize("field", LENGTHS)
def test_a_text_of_exactly_the_limit_is_the_longest_accepted(field, letter):
    longest = letter * (LENGTHS[field] // (len(letter.encode("utf-16-le")) // 2))

    encode_track({"event": "e", field: longest})
    with pytest.raises(InvalidEvent):
        encode_track({"event": "e", field: longest + "x"})


HINTS = {
    "usr_id": "did you mean user_id?",
    "source": "send `url` and `referrer` instead",
    "country": "from the request",
    "traits": "is not a field of this call",
}


@pytest.mark.parametrize("name", HINTS)
def test_an_unknown_field_is_refused_with_a_hint(name):
    with pytest.raises(InvalidEvent) as caught:
        encode_track({"event": "e", name: "x"})

    assert [problem.field for problem in caught.value.problems] == [name]
    assert HINTS[name] in caught.value.problems[0].rule


def test_only_a_size_alone_is_an_event_too_large():
    """A caller that catches EventTooLarge shortens the event; a wrong field would remain."""
    large = {"event": "e", "properties": {"a": "x" * 9000}}
    for fields, limit in ((large, {}), ({"event": "e", "path": "p" * 900}, {"bytes_max": 900})):
        with pytest.raises(EventTooLarge):
            encode_track(fields, **limit)
    with pytest.raises(InvalidEvent) as caught:
        encode_track({**large, "event": ""})

    assert type(caught.value) is InvalidEvent
    assert len(caught.value.problems) == 2


def test_the_callers_dict_stays_unchanged_and_none_means_not_given():
    fields = {"event": "e", "user_id": None, "properties": {"a": (1, 2)}}

    assert b"user_id" not in encode_track(fields).body
    assert fields == {"event": "e", "user_id": None, "properties": {"a": (1, 2)}}


def test_a_refusal_inside_an_except_block_shows_no_error_of_pydantic():
    """A caller's own exception may be chained to ours, but nothing that pydantic raised."""
    outer = KeyError("theirs")
    try:
        raise outer
    except KeyError:
        with pytest.raises(InvalidEvent) as caught:
            encode_track({"event": SECRET * 99, "timestamp": SECRET})

    assert caught.value.__context__ is outer


def test_all_broken_rules_are_named_at_once():
    with pytest.raises(InvalidEvent) as caught:
        encode_track({"event": 1, "user_id": 2, "url": "x", "properties": []})

    fields = {problem.field for problem in caught.value.problems}
    assert fields == {"event", "user_id", "url", "properties"}
