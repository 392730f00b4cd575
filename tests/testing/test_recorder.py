"""What a recorder sees, and that everything else is as in real life."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from inspect import iscoroutinefunction, signature

import pytest
from celery import chain

from mm_tasks import aclose, context, forget, identify, runtime, track
from mm_tasks.buffer.producer import Producer
from mm_tasks.connections.async_client import AsyncClients
from mm_tasks.erasure.service import ErasureService
from mm_tasks.errors import (
    AuditUnavailable,
    BufferFull,
    BufferUnavailable,
    ConfigurationError,
    EventTooLarge,
    InvalidEvent,
)
from mm_tasks.testing import record
from mm_tasks.testing import runtime as recording

AT = datetime(2026, 1, 14, 9, tzinfo=UTC)


def names(recorder):
    return [one.event for one in recorder.events]


def test_an_event_is_recorded_as_it_would_be_sent(events):
    """The fields are read back from the bytes, so a datetime is the text the vendor gets."""
    receipt = track.delay("signup", user_id="u1", timestamp=AT, properties={"at": AT})

    (one,) = events.events

    assert (one.lane, one.event, one.id) == ("track", "signup", receipt.id)
    assert one.fields == {
        "event": "signup",
        "event_id": receipt.id,
        "timestamp": "2026-01-14T09:00:00.000Z",
        "user_id": "u1",
        "properties": {"at": "2026-01-14T09:00:00.000Z"},
    }
    assert not one.through_broker


def test_many_are_recorded_in_order_and_bad_ones_skipped(events):
    items = [{"event": f"e{n}"} for n in range(1500)]
    items[1] = {"event": ""}

    receipts = track.delay_many(items, on_error="skip")

    assert names(events) == ["e0", *(f"e{n}" for n in range(2, 1500))]
    assert [n for n, receipt in enumerate(receipts) if not receipt.accepted] == [1]


def test_of_many_with_one_invalid_nothing_is_recorded(events):
    with pytest.raises(InvalidEvent, match=r"\[1\] event"):
        track.delay_many([{"event": "a"}, {"event": ""}])

    events.assert_nothing()


def test_what_asyncio_tracks_is_recorded(events):
    async def report():
        await track.adelay("one")
        await track.adelay_many([{"event": "two"}, {"event": "three"}])
        return await identify.adelay("a1", "u1")

    assert asyncio.run(report()).accepted
    assert names(events) == ["one", "two", "three", None]


def test_identify_and_forget_are_recorded(events):
    identify.delay("a1", "u1", traits={"plan": "pro"})
    receipt = forget.delay(user_id="u9", requested_by="dpo", anonymous_ids=["a9"])

    events.assert_identified(anonymous_id="a1", user_id="u1", traits={"plan": "pro"})
    asked = events.assert_forgotten(user_id="u9", requested_by="dpo", anonymous_ids=["a9"])
    assert asked.id == receipt.id


def test_what_events_have_in_common_is_recorded(events):
    with context(user_id="u1", url="https://example.com/a"):
        track.delay("seen")
        track.apply_async(("later",), countdown=5)

    assert len(events.tracked(user_id="u1", url="https://example.com/a")) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: track.delay("signup", user_id=42),
        lambda: track.apply_async((), {"event": ""}, countdown=5),
        lambda: identify.delay(user_id="u1"),
        lambda: forget.delay(user_id="u1"),
        lambda: forget.delay(user_id="u1", requested_by="dpo", ticket="a@b"),
        lambda: forget.delay(user_id="u1", requested_by="dpo", reason="no such reason"),
    ],
    ids=["track", "later", "identify", "a field is missing", "a ticket", "a reason"],
)
def test_what_is_refused_in_real_life_is_refused_here(events, call):
    with pytest.raises(InvalidEvent):
        call()

    events.assert_nothing()


def test_the_limits_are_those_of_the_settings(events, monkeypatch):
    """A test of a program with smaller batches must find the event that is too large for them."""
    monkeypatch.setenv("MM_TASKS_BATCH_BYTES_MAX", "1000")

    with pytest.raises(EventTooLarge):
        track.delay("big", properties={"text": "x" * 1000})
    events.assert_nothing()


def test_a_suppressed_person_is_not_accepted(events):
    events.suppress(user_id="u1")
    events.suppress(anonymous_id="a1")

    receipts = track.delay_many(
        [
            {"event": "a", "user_id": "u1"},
            {"event": "b", "anonymous_id": "a1"},
            {"event": "c", "user_id": "a1"},
        ]
    )

    assert [receipt.accepted for receipt in receipts] == [False, False, True]
    assert names(events) == ["c"]
    assert [one.event for one in events.suppressed] == ["a", "b"]


def test_a_forgotten_person_is_suppressed_and_asked_for_again_the_same_erasure(events):
    first = forget.delay(user_id="u1", requested_by="dpo", anonymous_ids=["a1"])
    again = forget.delay(user_id="u1", requested_by="dpo")

    assert first.fenced
    assert again.id == first.id
    assert not track.delay("seen", user_id="u1").accepted
    assert not track.delay("seen", anonymous_id="a1").accepted
    assert len(events.forgotten(user_id="u1")) == 2


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (BufferFull("full"), lambda: track.delay("a")),
        (BufferUnavailable("away", maybe_stored=1), lambda: identify.delay("a1", "u1")),
        (BufferFull("full"), lambda: track.delay_many([{"event": "a"}])),
        (AuditUnavailable("away"), lambda: forget.delay(user_id="u1", requested_by="dpo")),
        (ConfigurationError("no"), lambda: track.delay("a")),
    ],
    ids=["track", "identify", "many", "forget", "settings"],
)
def test_failures_can_be_asked_for(events, error, call):
    """The error raised is a copy: the caller's would collect tracebacks and counts."""
    events.fail_with(error, times=2)

    for _ in range(2):
        with pytest.raises(type(error), match=str(error)) as raised:
            call()
        assert raised.value is not error
        assert vars(raised.value) == vars(error)
    assert not events.events
    call()
    assert len(events.events) == 1


def test_failures_last_until_they_are_ended(events):
    events.fail_with(BufferFull("full"))
    for _ in range(3):
        with pytest.raises(BufferFull):
            track.delay("a")
    forget.delay(user_id="u1", requested_by="dpo")  # needs no buffer
    events.fail_with(None)

    assert track.delay("a").accepted


def test_only_what_a_call_may_raise_can_be_asked_for(events):
    """A test of a caller that handles `RuntimeError` would prove nothing."""
    with pytest.raises(TypeError, match="BufferFull"):
        events.fail_with(RuntimeError("no"))


def test_a_failure_does_not_meet_what_goes_through_the_broker(events):
    """A worker would meet it, and try again; the caller sees nothing."""
    events.fail_with(BufferFull("full"))

    track.apply_async(("later",), countdown=5)

    assert names(events) == ["later"]


def test_what_goes_through_the_broker_says_so(events):
    result = track.apply_async(("later",), {"user_id": "u1"}, countdown=30, queue=None)
    forget.apply_async((), {"user_id": "u9", "requested_by": "dpo"}, countdown=5)
    track.apply_async(("now",), {"user_id": "u1"})

    later, asked, now = events.events
    assert isinstance(result.id, str)
    assert later.through_broker
    assert later.options == {"countdown": 30}
    assert (asked.lane, asked.options) == ("forget", {"countdown": 5})
    assert not now.through_broker


def test_how_a_forget_came_is_recorded_as_the_log_has_it(events):
    """In a message it is the weaker way, which a team may want to rule out."""
    by_message = {"user_id": "u1", "requested_by": "dpo"}
    forget.apply_async((), by_message, countdown=5)
    forget.delay(user_id="u2", requested_by="dpo")

    events.assert_forgotten(user_id="u1", via="message")
    events.assert_forgotten(user_id="u2", via="call")


def test_what_asyncio_opened_can_be_closed(events):
    """A program closes it at its end, whether it is recorded or not."""

    async def report():
        await track.adelay("one")
        await aclose()
        await runtime.current().async_clients.close()

    asyncio.run(report())
    assert names(events) == ["one"]


def test_the_stand_ins_offer_what_they_stand_for():
    """As much of it as a caller uses, under the same names and with the same arguments."""
    pairs = [
        (recording.RecordingErasureService.request, ErasureService.request),
        (recording.RecordingProducer.append, Producer.append),
        (recording.RecordingProducer.aappend, Producer.aappend),
        *(
            (getattr(recording.NoClients, name), method)
            for name, method in vars(AsyncClients).items()
            if name[0] != "_"
        ),
    ]

    for ours, theirs in pairs:
        assert list(signature(ours).parameters) == list(signature(theirs).parameters)
        assert iscoroutinefunction(ours) == iscoroutinefunction(theirs)


def test_signatures_and_chains_are_recorded(events):
    """The first task of a chain is; the others would follow in a worker."""
    track.s("signed", user_id="u1").apply_async(countdown=1)
    chain(track.si("first"), track.si("second")).apply_async()

    assert names(events) == ["signed", "first"]


def test_what_a_message_makes_of_the_arguments_is_recorded(events):
    """JSON has no tuples and no dates; Celery turns some of them back."""
    track.apply_async(("later",), {"timestamp": AT, "properties": {"at": AT}}, countdown=5)

    events.assert_tracked("later", timestamp=AT, properties={"at": AT})


def test_all_threads_are_recorded(events):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: track.delay("seen", user_id=f"u{n}"), range(400)))

    assert {one.fields["user_id"] for one in events.events} == {f"u{n}" for n in range(400)}


def test_the_newest_recorder_takes_all_and_then_the_one_before():
    with record() as outer:
        track.delay("one")
        with record() as inner:
            track.delay("two")
        track.delay("three")

    assert names(outer) == ["one", "three"]
    assert names(inner) == ["two"]


def test_recorders_may_end_in_any_order(fresh):
    """Two threads that record at once must not leave a recorder behind."""
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    first, second = record(), record()
    with first as kept:
        newest = second.__enter__()
    track.delay("one")
    second.__exit__(None, None, None)

    assert names(newest) == ["one"]
    assert not kept.events
    with pytest.raises(BufferUnavailable):
        track.delay("two")


def test_after_a_failure_inside_nothing_is_recorded_any_more(fresh):
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    with pytest.raises(KeyError), record() as events:
        raise KeyError

    with pytest.raises(BufferUnavailable):
        track.delay("one")
    assert not events.events


def test_the_runtime_of_before_comes_back(fresh):
    """Its connections are open; another one would open them again."""
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    before = runtime.current()
    with record():
        assert runtime.current() is not before

    assert runtime.current() is before


def test_what_would_need_redis_says_why_there_is_none(events):  # noqa: ARG001 - records
    with pytest.raises(AttributeError, match="recorded here and not stored"):
        runtime.current().deliveries  # noqa: B018


def test_clear_forgets_the_records_and_not_who_is_suppressed(events):
    events.suppress(user_id="u1")
    track.delay("one")
    track.delay("one", user_id="u1")
    events.clear()

    assert not events.events
    assert not events.suppressed
    assert not track.delay("one", user_id="u1").accepted


def test_each_thread_has_a_way_of_its_own(events):
    """One that publishes must not mark what another stores meanwhile."""

    def call(n):
        if n % 2:
            return track.delay("now")
        return track.apply_async(("later",), countdown=1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(call, range(200)))

    assert {(one.event, one.through_broker) for one in events.events} == {
        ("now", False),
        ("later", True),
    }
