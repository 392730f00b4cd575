"""The arguments of `forget`: what becomes a request, and which rule each other one breaks."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mm_tasks.erasure.request import ANONYMOUS_IDS_MAX, ErasureRequest, Reason, request_of
from mm_tasks.errors import InvalidEvent

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
LEAST = {"user_id": "user-1", "requested_by": "dpo"}
TOO_LONG = "must have at most {} characters, counted in UTF-16 as JavaScript does"
A_LIST = "must be a list of strings"
A_TIME = "must be an aware datetime, or ISO 8601 text"
KNOWN = "user_id, requested_by, reason, ticket, received_at, anonymous_ids, mode, grace_s"
OPAQUE = "must be an opaque reference: 1-128 characters, no @, no spaces"
GRACE = "must be a number of seconds from 0 to 2332800"
NO_ID = "must be text that is not empty, without lone surrogates"


def problems(**fields):
    """Return every broken rule of a call with these fields besides the least ones."""
    asked = {name: one for name, one in {**LEAST, **fields}.items() if one is not ...}
    with pytest.raises(InvalidEvent) as raised:
        request_of(asked, NOW)
    return [(one.field, one.rule) for one in raised.value.problems]


# What is accepted.


def test_required_fields_alone_take_the_defaults_and_none_is_not_given():
    names = ("reason", "ticket", "received_at", "anonymous_ids", "mode", "grace_s")
    everything = dict.fromkeys(names)

    assert request_of(LEAST, NOW) == ErasureRequest("user-1", "dpo")
    assert request_of({**LEAST, **everything}, NOW) == request_of(LEAST, NOW)


@pytest.mark.parametrize(
    ("name", "value", "kept"),
    [
        *(("anonymous_ids", kind(["a"]), ("a",)) for kind in (list, tuple, set, frozenset)),
        ("received_at", NOW, NOW),
        ("received_at", "2026-01-31T12:00:00Z", NOW),
        ("received_at", "2026-01-31T14:00:00.000+02:00", NOW),
    ],
)
def test_ids_may_be_in_any_collection_and_a_time_may_be_text(name, value, kept):
    assert getattr(request_of({**LEAST, name: value}, NOW), name) == kept


@pytest.mark.parametrize(
    ("name", "longest"),
    [
        ("user_id", "x" * 256),
        ("user_id", "\U0001f600" * 128),
        ("anonymous_ids", ["x" * 128]),
        ("anonymous_ids", [f"{n}" for n in range(ANONYMOUS_IDS_MAX)]),
    ],
)
def test_the_longest_that_the_vendor_takes_is_accepted(name, longest):
    request_of({**LEAST, name: longest}, NOW)


# What is refused, and why.


REFUSED = {
    "no user": ("user_id", ..., "is required"),
    "a user that is None": ("user_id", None, "is required"),
    "a number for a user": ("user_id", 42, "must be a string; use str()"),
    "a boolean for a user": ("user_id", True, "must be a string"),
    "bytes for a user": ("user_id", b"u", "must be a string"),
    "an empty user": ("user_id", "", NO_ID),
    "half a character": ("user_id", "\ud83d", NO_ID),
    "a long user": ("user_id", "x" * 257, TOO_LONG.format(256)),
    "a user of wide characters": ("user_id", "\U0001f600" * 129, TOO_LONG.format(256)),
    "nobody asks": ("requested_by", ..., "is required"),
    "an address asks": ("requested_by", "dpo@example.org", OPAQUE),
    "a name with a space asks": ("requested_by", "Ada L", OPAQUE),
    "a number asks": ("requested_by", 7, "must be a string"),
    "a ticket that is a number": ("ticket", 1093, "must be a string"),
    "a ticket that is empty": ("ticket", "", OPAQUE),
    "a long ticket": ("ticket", "T" * 129, OPAQUE),
    "an unknown reason": ("reason", "because", f"must be one of {', '.join(Reason)}"),
    "an unknown mode": ("mode", "twice", "must be one of suppress, once"),
    "a mode that is a list": ("mode", ["once"], "must be a string"),
    "one id for a list": ("anonymous_ids", "abc", A_LIST),
    "numbers among the ids": ("anonymous_ids", ["a", 1], A_LIST),
    "a generator of ids": ("anonymous_ids", iter("ab"), A_LIST),
    "an empty id": ("anonymous_ids", [""], NO_ID),
    "a long id": ("anonymous_ids", ["x" * 129], TOO_LONG.format(128)),
    "a grace below zero": ("grace_s", -1, GRACE),
    "a grace that is a boolean": ("grace_s", True, GRACE),
    "a grace that is no number": ("grace_s", float("nan"), GRACE),
    "a grace of more than the month": ("grace_s", 2_332_801, GRACE),
    "too many ids": ("anonymous_ids", ["a"] * 501, "must be at most 500 ids"),
    "a time that is a number": ("received_at", 1_769_860_800, A_TIME),
    "a time that is no time": ("received_at", "yesterday", A_TIME),
    "an empty time": ("received_at", "", A_TIME),
    "a time without a zone": ("received_at", "2026-01-31T12:00:00", "must have a time zone"),
    "a day": ("received_at", "2026-01-31", "must have a time zone"),
    "a time to come": ("received_at", NOW + timedelta(minutes=6), "must not be in the future"),
    "a field of another call": (
        *("event", "signup"),
        f"is not a field of this call; known are {KNOWN}",
    ),
}


@pytest.mark.parametrize(("name", "value", "rule"), REFUSED.values(), ids=REFUSED)
def test_a_broken_rule_is_named_with_its_field(name, value, rule):
    assert problems(**{name: value}) == [(name, rule)]


def test_every_broken_rule_is_named_at_once():
    broken = problems(user_id=7, requested_by=..., mode=1, anonymous_ids="a", event="e")

    names = ["event", "requested_by", "user_id", "mode", "anonymous_ids"]
    assert [field for field, _ in broken] == names


@pytest.mark.parametrize("name", ["person@example.org", "x" * 65, "", "a b", 7])
def test_a_name_that_may_be_data_is_not_repeated(name):
    with pytest.raises(InvalidEvent) as raised:
        request_of({**LEAST, name: "x"}, NOW)

    assert str(raised.value) == "forget: has a field with an unusable name"


@pytest.mark.parametrize("name", ["requested_by", "ticket"])
@pytest.mark.parametrize("text", ["USER-1", "for-user-1", "visitor-9"])
def test_no_reference_holds_an_id_of_the_person(name, text):
    """The log outlives the erasure, and these stand in it."""
    rule = "must not hold an id of the subject: the log outlives the erasure"

    assert problems(**{name: text, "anonymous_ids": ["visitor-9"]}) == [(name, rule)]


def test_an_id_of_a_few_characters_may_stand_in_a_ticket_by_chance():
    request_of({"user_id": "109", "requested_by": "dpo", "ticket": "GDPR-1093"}, NOW)


# Whatever comes.

HOSTILE = "hostile-value-5f3a"
anything = (
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
    *(st.lists(st.text(), max_size=3), st.dictionaries(st.text(), st.text(), max_size=2)),
    st.datetimes(timezones=st.none() | st.just(UTC)),
)
fields = st.dictionaries(
    st.sampled_from(KNOWN.split(", ")) | st.text(max_size=5), st.one_of(anything)
)


def checked(values):
    """Return the request, or the error that its fields raise."""
    try:
        return request_of(values, NOW)
    except InvalidEvent as error:
        return error


@given(fields)
def test_any_fields_give_a_request_or_an_invalid_event(values):
    """Never a `TypeError`, nor what a parser or a clock raises."""
    asked = checked(values)

    assert asked.problems if isinstance(asked, InvalidEvent) else asked.user_id == values["user_id"]


texts = (HOSTILE, f"{HOSTILE} x", f"{HOSTILE}@x", HOSTILE * 20)
others = ([HOSTILE, 1], [HOSTILE * 20], {HOSTILE: HOSTILE}, HOSTILE.encode())
shapes = st.sampled_from([*texts, *others])


@given(st.dictionaries(st.sampled_from([*KNOWN.split(", "), f"{HOSTILE}@"]), shapes, min_size=1))
def test_no_value_is_ever_in_the_text(values):
    """An error is logged, and logs outlive erasures."""
    found = checked(values)

    assert not isinstance(found, InvalidEvent) or HOSTILE not in str(found) + repr(found)


@pytest.mark.parametrize(
    "moment",
    [datetime.min.replace(tzinfo=timezone(timedelta(hours=23))), "0001-01-01T00:00:00+14:00"],
)
def test_a_time_before_all_time_is_refused_like_any_other(moment):
    """In UTC it would be in the year 0, which Python does not have."""
    assert [field for field, _ in problems(received_at=moment)] == ["received_at"]


def test_another_host_does_not_judge_a_receipt_by_its_clock():
    tomorrow = NOW + timedelta(days=1)

    assert request_of({**LEAST, "received_at": tomorrow}).received_at == tomorrow
