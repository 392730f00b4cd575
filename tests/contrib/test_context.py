"""`mm_tasks.context`: fields that jobs and scripts add to all events tracked inside."""

import pytest

from mm_tasks import context, identify, track
from mm_tasks.errors import InvalidEvent
from tests.conftest import waiting_events as stored

pytestmark = pytest.mark.usefixtures("here")

OWN = ("event", "event_id", "timestamp")


def shared(redis):
    """Return the shared fields of the stored events."""
    return [{name: event[name] for name in event if name not in OWN} for event in stored(redis)]


def test_contexts_may_be_nested_and_the_inner_one_wins(redis):
    with context(anonymous_id="a", url="https://o/"):
        with context(url="https://i/", session_id="s"):
            track.delay("inner")
        track.delay("outer")
    track.delay("after")

    inner = {"anonymous_id": "a", "session_id": "s", "url": "https://i/"}
    assert shared(redis) == [inner, {"anonymous_id": "a", "url": "https://o/"}, {}]


def test_none_removes_an_outer_field_in_a_context_and_in_a_call(redis):
    with context(anonymous_id="a", user_id="u", path="/p"):
        track.delay("e", path=None)
        with context(anonymous_id=None):
            track.delay("e")

    expected = [{"anonymous_id": "a", "user_id": "u"}, {"user_id": "u", "path": "/p"}]
    assert shared(redis) == expected


def test_a_decorated_function_has_the_context_in_each_call_and_an_error_ends_it(redis):
    @context(anonymous_id="a")
    def job(error=None):
        track.delay("e")
        if error:
            raise error

    job()
    with pytest.raises(LookupError):
        job(LookupError())
    track.delay("after")

    assert shared(redis) == [{"anonymous_id": "a"}, {"anonymous_id": "a"}, {}]


def test_a_backfill_ignores_the_context_and_identify_takes_the_ids(redis):
    with context(anonymous_id="a", user_id="u", path="/p"):
        track.delay_many([{"event": "imported"}])
        identify.delay()
        identify.delay("b")

    assert shared(redis) == [{}]
    links = [(link["anonymous_id"], link["user_id"]) for link in stored(redis, lane="identify")]
    assert links == [("a", "u"), ("b", "u")]


REFUSED = {
    "not shared": ({"event": "e"}, "event: cannot be shared"),
    "unknown, though None": ({"utm": None}, "utm: cannot be shared"),
    "no URL": ({"url": "secret"}, "url: must be"),
    "no text": ({"user_id": 7}, "user_id: must be"),
    "too long": ({"anonymous_id": "secret" * 30}, "anonymous_id: must have"),
}


@pytest.mark.parametrize(("fields", "rule"), REFUSED.values(), ids=REFUSED.keys())
def test_an_invalid_field_raises_at_once_without_its_value(fields, rule):
    with pytest.raises(InvalidEvent, match=rule) as raised, context(**fields):
        pytest.fail("the context was entered")

    assert "secret" not in str(raised.value)
