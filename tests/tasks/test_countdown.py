"""`countdown` and `eta`: stored in the call, without a message, and due at their time."""

import math
import time
import uuid
from datetime import UTC, datetime, timedelta, timezone
from enum import StrEnum
from functools import partial

import pytest

from mm_tasks import ErasureReceipt, Receipt, forget, identify, runtime, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.errors import BufferFull, InvalidEvent
from mm_tasks.tasks.countdown import COUNTDOWN_MAX_S, delay_s
from tests.buffer.lane_buffer import scheduled_records
from tests.conftest import load_fences

KEYS = ProjectKeys("default")
QUEUES = ("mm.deliver", "mm.identify", "mm.forget")
NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
PLUS_5 = timezone(timedelta(hours=5))


class Plan(StrEnum):
    PRO = "pro"


def scheduled(redis, lane="track"):
    """Return the body of each scheduled event, and in how many seconds it is due."""
    seconds, micros = redis.time()
    found = redis.zrange(KEYS.lane(lane).scheduled, 0, -1, withscores=True)
    members = [member for member, _ in found]
    due_s = [due_ms / 1000 - seconds - micros / 1e6 for _, due_ms in found]
    return list(zip([r[HEADER_BYTES:] for r in scheduled_records(members)], due_s, strict=True))


def assert_no_message(redis):
    assert not redis.exists(*QUEUES, "unacked")


def in_an_hour():
    return datetime.now(UTC) + HOUR


@pytest.mark.parametrize(
    "call",
    [
        lambda *a, **k: track.apply_async(a, k, countdown=3600),
        lambda *a, **k: track.apply_async(a, k, countdown=3600.0, eta=None, queue=None),
        lambda *a, **k: track.s(*a, **k).apply_async(countdown=3600),
        lambda *a, **k: track.s(*a, **k).set(countdown=3600).delay(),
        lambda *a, **k: track.si(*a, **k).set(countdown=3600).apply_async(),
        lambda *a, **k: track.apply_async(a, k, eta=in_an_hour()),
        lambda *a, **k: track.apply_async(a, k, eta=in_an_hour().replace(tzinfo=None)),
        lambda *a, **k: track.apply_async(a, k, eta=in_an_hour().astimezone(PLUS_5)),
        lambda *a, **k: track.apply_async(a, k, eta=in_an_hour().isoformat()),
    ],
    ids=[
        *("countdown", "float", "signature", "set", "immutable"),
        *("eta", "naive is UTC", "another zone", "text"),
    ],
)
def test_a_call_for_later_is_stored_as_delay_stores_it_and_nothing_is_published(
    redis, stored, call
):
    """JSON of a message would change an Enum, and kombu would open its own envelope."""
    properties = {
        "plan": Plan.PRO,
        "id": uuid.UUID(int=7),
        "at": NOW,
        "envelope": {"__type__": "datetime", "__value__": "2026-01-01"},
    }
    fields = {"event_id": "i", "user_id": "u", "timestamp": NOW, "properties": properties}
    receipt = call("e", **fields)
    [(body, due_s)] = scheduled(redis)
    track.delay("e", **fields)

    assert (type(receipt), receipt.id, receipt.accepted) == (Receipt, "i", True)
    assert redis.lrange(KEYS.lane("track").waiting, 0, -1)[0][HEADER_BYTES:] == body
    assert 3500 < due_s <= 3601
    assert_no_message(redis)
    assert len(stored()) == 1


@pytest.mark.usefixtures("stored")
def test_an_identify_may_be_for_later_too(redis):
    assert identify.apply_async(("a", "u"), countdown=60).accepted
    assert [body for body, _ in scheduled(redis, "identify")] == [
        b'{"anonymous_id":"a","user_id":"u"}'
    ]
    assert_no_message(redis)


@pytest.mark.parametrize("options", [{"countdown": 0}, {"countdown": -5}, {"eta": NOW}])
def test_a_time_that_has_passed_is_now(redis, stored, options):
    track.apply_async(("e",), **options)

    assert [event["event"] for event in stored()] == ["e"]
    assert scheduled(redis) == []


def test_the_event_has_the_time_at_which_it_is_due(redis, stored):
    """As it had when a worker stored it then. A timestamp of the call's own stays."""
    track.apply_async(("e",), countdown=3600)
    [(body, _)] = scheduled(redis)
    at = datetime.fromisoformat(body.split(b'"timestamp":"')[1][:24].decode())

    assert abs(at - in_an_hour()) < timedelta(minutes=1)
    assert stored() == []


@pytest.mark.usefixtures("stored")
def test_a_signature_keeps_its_arguments(redis):
    """What is stamped for one call must not be in the next."""
    signature = track.s("e", user_id="u")
    for _ in range(2):
        signature.apply_async(countdown=60)

    assert signature.kwargs == {"user_id": "u"}
    assert len({body for body, _ in scheduled(redis)}) == 2


RULES = [
    ({"countdown": math.nan}, "countdown: must be a finite number"),
    ({"countdown": math.inf}, "countdown: must be a finite number"),
    ({"countdown": -math.inf}, "countdown: must be a finite number"),
    ({"countdown": True}, "countdown: must be a finite number"),
    ({"countdown": "60"}, "countdown: must be a finite number"),
    ({"countdown": HOUR}, "countdown: must be a finite number"),
    ({"countdown": COUNTDOWN_MAX_S + 1}, "countdown: must be at most"),
    ({"countdown": 10**400}, "countdown: must be at most"),
    ({"countdown": 1e300}, "countdown: must be at most"),
    ({"eta": NOW + timedelta(seconds=COUNTDOWN_MAX_S + 1)}, "eta: must be at most"),
    ({"eta": datetime.max}, "eta: must be at most"),  # noqa: DTZ901 - a naive one is allowed
    ({"eta": "tomorrow"}, "eta: must be a datetime"),
    ({"eta": 1_800_000_000}, "eta: must be a datetime"),
    ({"eta": NOW, "countdown": 1}, "eta: cannot be combined"),
]


@pytest.mark.parametrize(("options", "rule"), RULES)
def test_a_time_that_is_none_is_refused_by_field_and_rule(options, rule):
    with pytest.raises(InvalidEvent, match=rule):
        delay_s(options, NOW)


@pytest.mark.parametrize(
    "call",
    [
        partial(track.apply_async, ("e",), countdown="60"),
        partial(track.apply_async, ("e",), {"usr_id": "u"}, countdown=60),
        partial(forget.apply_async, ("u",), countdown=60),
        partial(forget.apply_async, ("u", "dpo"), eta="tomorrow"),
    ],
)
def test_an_invalid_call_stores_and_publishes_nothing(redis, stored, call):
    with pytest.raises(InvalidEvent):
        call()
    assert stored() == scheduled(redis) == []
    assert_no_message(redis)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"countdown": 1.5}, 1.5),
        ({"countdown": -1e300}, 0),
        ({"countdown": -(10**400)}, 0),
        ({"countdown": COUNTDOWN_MAX_S}, COUNTDOWN_MAX_S),
        ({"eta": NOW + HOUR}, 3600),
        ({"eta": NOW - HOUR}, 0),
        ({"eta": datetime.min}, 0),  # noqa: DTZ901 - a naive one is allowed
        ({"eta": "2026-01-31T13:00:00"}, 3600),
        ({"eta": "2026-01-31T14:00:00+01:00"}, 3600),
        ({"eta": "2026-01-31T13:00:00Z"}, 3600),
    ],
)
def test_an_eta_is_held_against_the_clock_of_the_caller_alone(options, expected):
    """A host whose clock is an hour ahead means its own hour."""
    assert delay_s(options, NOW) == expected


@pytest.mark.parametrize("option", [{"queue": "mm.deliver"}, {"expires": 60}, {"priority": 3}])
def test_an_option_that_needs_the_broker_still_publishes(redis, stored, option):
    track.apply_async(("e",), countdown=60, **option)

    assert redis.exists("mm.deliver") or redis.keys("mm.deliver*")
    assert stored() == scheduled(redis) == []


@pytest.mark.usefixtures("stored")
def test_an_erased_person_is_refused_and_a_full_buffer_raises(redis, fresh):
    redis.sadd(KEYS.fence, tag("default", "user", "gone"))
    assert not track.apply_async(("e",), {"user_id": "gone"}, countdown=60).accepted
    fresh(MM_TASKS_BUFFER_BYTES_MAX="10")
    with pytest.raises(BufferFull):
        track.apply_async(("e",), countdown=60)
    assert scheduled(redis) == []


def test_a_forget_for_later_is_committed_now_and_fences_at_its_time(
    redis, redis_url, stored, tmp_path, fresh
):
    """Its receipt is real, the person's events are taken until then, and no message is sent."""
    fresh(MM_TASKS_STATE_DIR=str(tmp_path), MM_TASKS_REDIS_URL=redis_url)
    fresh(MILLIMETRIC_KEY="sk_test_abc_not-a-real-secret", MILLIMETRIC_HOST="http://127.0.0.1:1")
    load_fences(redis, "default")
    redis.delete(KEYS.fences)  # it names the store of another test
    receipt = forget.apply_async((), {"user_id": "u", "requested_by": "dpo"}, countdown=0.5)
    assert receipt == ErasureReceipt(receipt.id, fenced=False, seen=False)
    show = runtime.current().audit_store.queries.show
    assert show(receipt.id)["state"] == "scheduled"
    assert_no_message(redis)
    runtime.current().erasures.sweep()
    assert track.delay("e", user_id="u").accepted
    assert show(receipt.id)["state"] == "scheduled"

    time.sleep(0.5)
    runtime.current().erasures.sweep()
    assert not track.delay("e", user_id="u").accepted
    assert show(receipt.id)["state"] not in {"scheduled", "received"}
    assert stored() == []


def test_a_forget_at_once_starts_the_one_for_later(redis, redis_url, tmp_path, fresh):
    fresh(MM_TASKS_STATE_DIR=str(tmp_path), MM_TASKS_REDIS_URL=redis_url)
    later = forget.apply_async(("u", "dpo"), countdown=86_400)
    now = forget.delay("u", "dpo")

    assert (now.id, later.fenced, now.fenced) == (later.id, False, True)
    assert redis.sismember(KEYS.fence, tag("default", "user", "u"))
