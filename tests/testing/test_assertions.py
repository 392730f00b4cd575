"""The assertions: what they accept, and what they say."""

import enum
import uuid
from datetime import UTC, date, datetime
from unittest.mock import ANY

import pytest
from celery import chain

from mm_tasks import forget, identify, track
from mm_tasks.testing.matching import differences


class Plan(enum.StrEnum):
    PRO = "pro"


AT = datetime(2026, 1, 14, 9, tzinfo=UTC)
ID = uuid.UUID(int=7)
MATCHES = {
    "nothing asked": ({}, {"a": 1}),
    "a value": ({"a": 1}, {"a": 1, "b": 2}),
    "one key of several": ({"a": {"b": 1}}, {"a": {"b": 1, "c": 2}}),
    "anything": ({"a": ANY}, {"a": [1]}),
    "approximately": ({"a": {"b": pytest.approx(0.3)}}, {"a": {"b": 0.1 + 0.2}}),
    "an absent field": ({"a": None}, {"b": 1}),
    "a null": ({"a": {"b": None}}, {"a": {"b": None}}),
    "a datetime": ({"a": AT}, {"a": "2026-01-14T09:00:00.000Z"}),
    "a date": ({"a": date(2026, 1, 14)}, {"a": "2026-01-14"}),
    "a UUID": ({"a": ID}, {"a": str(ID)}),
    "an enum": ({"a": Plan.PRO}, {"a": "pro"}),
    "a tuple": ({"a": (1, {"b": 2})}, {"a": [1, {"b": 2, "c": 3}]}),
}
DIFFERS = {
    "a value": ({"a": 1}, {"a": 2}, ["a"]),
    "an absent field": ({"a": 1}, {}, ["a"]),
    "a field that should be absent": ({"a": None}, {"a": 1}, ["a"]),
    "a deep key": ({"a": {"b": {"c": 1, "d": 2}}}, {"a": {"b": {"c": 9, "d": 2}}}, ["a.b.c"]),
    "an absent key": ({"a": {"b": None}}, {"a": {}}, ["a.b"]),
    "a place in a list": ({"a": [1, 2]}, {"a": [1, 3]}, ["a[1]"]),
    "a longer list": ({"a": [1]}, {"a": [1, 2]}, ["a"]),
    "True for 1": ({"a": 1}, {"a": True}, ["a"]),
    "1 for True": ({"a": True}, {"a": 1}, ["a"]),
    "a naive datetime": ({"a": AT.replace(tzinfo=None)}, {"a": "2026-01-14T09:00:00.000Z"}, ["a"]),
}


@pytest.mark.parametrize(("expected", "fields"), MATCHES.values(), ids=MATCHES)
def test_a_record_may_have_more_fields_than_are_expected(expected, fields):
    assert differences(expected, fields) == []


@pytest.mark.parametrize(("expected", "fields", "paths"), DIFFERS.values(), ids=DIFFERS)
def test_each_difference_is_reported_with_its_path(expected, fields, paths):
    assert [difference.path for difference in differences(expected, fields)] == paths


def failure(assertion, *args, **fields):
    with pytest.raises(AssertionError) as raised:
        assertion(*args, **fields)
    return str(raised.value).splitlines()


def test_a_failure_shows_the_nearest_and_all_that_was_recorded(events):
    track.delay("login", user_id="u1")
    track.delay("signup", user_id="u1", properties={"plan": "free", "seats": 3})
    identify.delay("a1", "u1")
    forget.delay(user_id="u9", requested_by="dpo")
    track.apply_async(("later",), countdown=30)
    track.delay("gone", user_id="u9")

    expected = {"url": "https://a.b", "properties": {"plan": "pro"}}
    assert failure(events.assert_tracked, "signup", **expected) == [
        "track('signup', url='https://a.b', properties={'plan': 'pro'}) was not recorded.",
        "Nearest is number 2:",
        "    url              expected 'https://a.b', recorded nothing",
        "    properties.plan  expected 'pro', recorded 'free'",
        "Recorded:",
        "    1. track('login', user_id=…)",
        "    2. track('signup', user_id=…, properties={'plan': 'free', …})",
        "    3. identify(anonymous_id=…, user_id=…)",
        "    4. forget(user_id=…, requested_by=…, mode=…, via=…)",
        "    5. track('later')  [scheduled, countdown=30.0]",
        "Not accepted, as their person is suppressed:",
        "    1. track('gone', user_id=…)",
    ]


def test_a_misspelt_name_is_the_nearest(events):
    track.delay("logout", user_id="u1")
    track.delay("sign_up", user_id="u1")

    assert failure(events.assert_tracked, "signup", user_id="u1")[1:3] == [
        "Nearest is number 2:",
        "    event  expected 'signup', recorded 'sign_up'",
    ]


def test_long_lists_and_values_are_cut(events):
    track.delay_many({"event": "a", "properties": {"text": "x" * 500}} for _ in range(25))

    shown = failure(events.assert_not_tracked, properties={"text": ANY})

    assert len(shown) == 22
    assert shown[-1] == "    and 5 more"
    assert max(map(len, shown)) < 200


def test_once_is_neither_none_nor_two(events):
    nothing = ["track('a') was not recorded.", "Nothing was recorded."]
    assert failure(events.assert_tracked, "a") == nothing
    assert failure(events.assert_tracked_once, "a") == nothing
    track.delay("a")
    assert events.assert_tracked_once("a") == events.events[0]
    track.delay("a")

    twice = ["track('a') was recorded 2 times, not once:", "    1. track('a')", "    2. track('a')"]
    assert failure(events.assert_tracked_once, "a") == twice


def test_not_tracked_compares_fields_too(events):
    track.delay("a", user_id="u1")
    events.assert_not_tracked("b")
    events.assert_not_tracked("a", user_id="u2")

    assert failure(events.assert_not_tracked, "a", user_id="u1") == [
        "track('a', user_id='u1') was recorded, and should not have been:",
        "    1. track('a', user_id='u1')",
    ]


CALLS = {"identify": lambda: identify.delay("a1", "u1"), "track": lambda: track.delay("a")}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_nothing_means_no_call_at_all(events, call):
    events.assert_nothing()
    call()
    assert failure(events.assert_nothing)[0] == "nothing should have been recorded:"


def test_each_assertion_searches_only_the_records_of_its_own_task(events):
    """All three have a `user_id`."""
    identify.delay("a1", "u1")
    track.delay("a", user_id="u1")
    forget.delay(user_id="u1", requested_by="dpo", ticket="T-1")

    searches = (events.tracked, events.identified, events.forgotten)
    lanes = [[record.lane for record in search(user_id="u1")] for search in searches]
    assert lanes == [["track"], ["identify"], ["forget"]]
    assert failure(events.assert_identified, user_id="u2")[:3] == [
        "identify(user_id='u2') was not recorded.",
        "Nearest is number 1:",
        "    user_id  expected 'u2', recorded 'u1'",
    ]
    assert failure(events.assert_forgotten, ticket="T-2")[:3] == [
        "forget(ticket='T-2') was not recorded.",
        "Nearest is number 3:",
        "    ticket  expected 'T-2', recorded 'T-1'",
    ]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("plan", "properties={'plan': …}"), ("user", "user_id"), ("sessionid", "session_id")],
)
def test_a_name_that_no_event_has_is_refused(events, name, hint):
    """`assert_not_tracked(plan="pro")` would pass for ever."""
    with pytest.raises(TypeError) as raised:
        events.assert_not_tracked("signup", **{name: "x"})

    assert str(raised.value) == f"{name!r} is not a field of track; did you mean {hint}?"


def test_a_failure_shows_no_value_that_it_does_not_compare(events):
    """It ends in a log that many read. Names of events and fields are no personal data."""
    chain(track.si("a", user_id="secret"), identify.si("secret", "secret")).apply_async()
    track.delay("b", path="/", properties={"of": [{"n": 1, "secret": "secret"}], "secret": 1})
    forget.delay(user_id="secret", requested_by="dpo", anonymous_ids=["secret"])

    shown = failure(events.assert_tracked, "b", path=None, properties={"of": [{"n": 2}]})

    assert shown[1:] == [
        "Nearest is number 2:",
        "    path                expected None, recorded '/'",
        "    properties.of[0].n  expected 2, recorded 1",
        "Recorded:",
        "    1. track('a', user_id=…)  [through the broker]",
        "    2. track('b', path='/', properties={'of': [{'n': 1, …}], …})",
        "    3. forget(user_id=…, requested_by=…, anonymous_ids=…, mode=…, via=…)",
    ]
    assert repr(events) == "<Recorder: 3 recorded>"  # pytest prints it beside a failure
    assert "secret" not in repr(events.events)


def test_a_name_of_an_enum_is_shown_as_it_is_sent(events):
    name = enum.Enum("Name", {"SIGNUP": "signup"}).SIGNUP
    track.delay(name.value)
    events.assert_tracked(name)

    assert failure(events.assert_not_tracked, name)[0].startswith("track('signup') was")


CAN_NEVER_MATCH = {
    "a number as an id": ((), {"user_id": 42}, r"is text in every track; use str\(\)"),
    "a number as an event": ((), {"event": 42}, r"is text in every track; use str\(\)"),
    "a bool as a path": ((), {"path": True}, r"is text in every track; use str\(\)"),
    "a name given twice": (("signup",), {"event": "login"}, "event was given twice"),
}


@pytest.mark.parametrize(("args", "fields", "rule"), CAN_NEVER_MATCH.values(), ids=CAN_NEVER_MATCH)
def test_fields_that_no_event_can_have_are_refused(events, args, fields, rule):
    """`assert_not_tracked(user_id=user.pk)` would pass for ever."""
    with pytest.raises(TypeError, match=rule):
        events.assert_not_tracked(*args, **fields)
