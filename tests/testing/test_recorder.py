"""The records of a recorder; receipts, errors and limits are those of real calls."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
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
AWAY = "redis://127.0.0.1:1/0"


def names(recorder):
    return [record.event for record in recorder.events]


def forget_user(user_id="u1", **fields):
    return forget.delay(user_id=user_id, requested_by="dpo", **fields)


def test_an_event_is_recorded_as_it_would_be_sent(events):
    """The fields are read back from the bytes, so a datetime is the text that the vendor gets."""
    receipt = track.delay("signup", user_id="u1", timestamp=AT, properties={"at": AT})
    (event,) = events.events

    assert (event.lane, event.event, event.id) == ("track", "signup", receipt.id)
    at = "2026-01-14T09:00:00.000Z"
    sent = {"event": "signup", "event_id": receipt.id, "timestamp": at, "user_id": "u1"}
    assert event.fields == {**sent, "properties": {"at": at}}
    assert not event.through_broker


def test_many_are_recorded_in_order_and_bad_ones_skipped(events):
    items = [{"event": f"e{n}"} for n in range(1500)]
    items[1] = {"event": ""}

    receipts = track.delay_many(items, on_error="skip")

    assert names(events) == ["e0", *(f"e{n}" for n in range(2, 1500))]
    assert [n for n, receipt in enumerate(receipts) if not receipt.accepted] == [1]


def test_calls_on_a_loop_are_recorded_and_their_clients_can_be_closed(events):
    """A program closes its clients at its end, whether its calls are recorded or not."""

    async def report():
        await track.adelay("one")
        await track.adelay_many([{"event": "two"}, {"event": "three"}])
        receipt = await identify.adelay("a1", "u1")
        await aclose()
        await runtime.current().async_clients.close()
        return receipt

    assert asyncio.run(report()).accepted
    assert names(events) == ["one", "two", "three", None]


def test_identify_and_forget_are_recorded(events):
    """So is the way of a forget: in a message it is weaker, which a team may want to rule out."""
    identify.delay("a1", "u1", traits={"plan": "pro"})
    receipt = forget_user("u9", anonymous_ids=["a9"])
    forget.apply_async((), {"user_id": "u1", "requested_by": "dpo"}, queue="mm.forget")

    events.assert_identified(anonymous_id="a1", user_id="u1", traits={"plan": "pro"})
    recorded = events.assert_forgotten(user_id="u9", requested_by="dpo", anonymous_ids=["a9"])
    assert recorded.id == receipt.id
    events.assert_forgotten(user_id="u9", via="call")
    events.assert_forgotten(user_id="u1", via="message")


def test_the_fields_of_a_context_are_recorded(events):
    with context(user_id="u1", url="https://example.com/a"):
        track.delay("seen")
        track.apply_async(("later",), countdown=5)

    assert len(events.tracked(user_id="u1", url="https://example.com/a")) == 2


@pytest.mark.parametrize(
    "call",
    [
        lambda: track.delay("signup", user_id=42),
        lambda: track.delay_many([{"event": "a"}, {"event": ""}]),
        lambda: track.apply_async((), {"event": ""}, countdown=5),
        lambda: identify.delay(user_id="u1"),
        lambda: forget.delay(user_id="u1"),
        lambda: forget_user(ticket="a@b"),
        lambda: forget_user(reason="no such reason"),
    ],
    ids=["track", "one of many", "later", "identify", "a field is missing", "a ticket", "a reason"],
)
def test_an_invalid_call_is_refused_and_nothing_of_it_recorded(events, call):
    with pytest.raises(InvalidEvent):
        call()

    events.assert_nothing()


def test_the_limits_are_those_of_the_settings(events, monkeypatch):
    """A test of a program with smaller batches must find the event that is too large."""
    monkeypatch.setenv("MM_TASKS_BATCH_BYTES_MAX", "1000")

    with pytest.raises(EventTooLarge):
        track.delay("big", properties={"text": "x" * 1000})
    events.assert_nothing()


def test_a_suppressed_person_is_not_accepted(events):
    events.suppress(user_id="u1")
    events.suppress(anonymous_id="a1")
    items = [("a", "user_id", "u1"), ("b", "anonymous_id", "a1"), ("c", "user_id", "a1")]
    receipts = track.delay_many({"event": event, field: value} for event, field, value in items)

    assert [receipt.accepted for receipt in receipts] == [False, False, True]
    assert names(events) == ["c"]
    assert [record.event for record in events.suppressed] == ["a", "b"]


def test_a_forgotten_person_is_suppressed_and_a_second_forget_returns_the_same_erasure(events):
    first = forget_user(anonymous_ids=["a1"])
    second = forget_user()

    assert first.fenced
    assert second.id == first.id
    assert not track.delay("seen", user_id="u1").accepted
    assert not track.delay("seen", anonymous_id="a1").accepted
    assert len(events.forgotten(user_id="u1")) == 2


@pytest.mark.parametrize(
    ("error", "call"),
    [
        (BufferFull("full"), lambda: track.delay("a")),
        (BufferUnavailable("away", maybe_stored=1), lambda: identify.delay("a1", "u1")),
        (BufferFull("full"), lambda: track.delay_many([{"event": "a"}])),
        (AuditUnavailable("away"), forget_user),
        (ConfigurationError("no"), lambda: track.delay("a")),
    ],
    ids=["track", "identify", "many", "forget", "settings"],
)
def test_failures_can_be_planned(events, error, call):
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


def test_failures_last_until_they_are_ended_and_affect_only_calls_that_need_the_buffer(events):
    """A worker would meet the failure of a message, and retry; its caller sees nothing."""
    events.fail_with(BufferFull("full"))
    for _ in range(3):
        with pytest.raises(BufferFull):
            track.delay("a")
    with pytest.raises(BufferFull):
        track.apply_async(("later",), countdown=5)
    forget_user()
    track.apply_async(("later",), queue="mm.deliver")
    assert names(events) == [None, "later"]
    events.fail_with(None)
    assert track.delay("a").accepted
    with pytest.raises(TypeError, match="BufferFull"):  # no call raises such an error
        events.fail_with(RuntimeError("no"))


def test_a_call_through_the_broker_is_marked(events):
    options = {"countdown": 30, "queue": "mm.deliver"}
    result = track.apply_async(("later",), {"user_id": "u1"}, **options, expires=None)
    forget.apply_async((), {"user_id": "u9", "requested_by": "dpo"}, queue="mm.forget")
    track.apply_async(("now",), {"user_id": "u1"})

    later, forgotten, now = events.events
    assert isinstance(result.id, str)
    assert later.through_broker
    assert later.options == options
    assert (forgotten.lane, forgotten.options) == ("forget", {"queue": "mm.forget"})
    assert not now.through_broker


def test_a_scheduled_call_is_recorded_with_its_delay(events):
    """It is stored in the call, so its receipt is real and nothing goes through the broker."""
    receipt = track.apply_async(("later",), {"user_id": "u1"}, countdown=30)
    identify.apply_async(("a1", "u1"), eta=datetime.now(UTC) + timedelta(hours=1))
    erasure = forget.apply_async((), {"user_id": "u9", "requested_by": "dpo"}, countdown=5)
    track.apply_async(("at once",), {"user_id": "u9"}, countdown=-1)

    later, identified, forgotten, now = events.events
    assert (later.id, later.delay_s, later.options) == (receipt.id, 30, {"countdown": 30})
    assert 3590 < identified.delay_s <= 3601
    assert (forgotten.id, forgotten.delay_s, erasure.fenced) == (erasure.id, 5, False)
    assert (now.delay_s, now.options) == (None, None)
    assert not any(recorded.through_broker for recorded in events.events)
    events.assert_forgotten(user_id="u9", via="call")


def test_the_stand_ins_offer_what_they_stand_for():
    """As much of it as a caller uses, under the same names and with the same arguments."""
    pairs = [
        (recording.RecordingErasureService.request, ErasureService.request),
        (recording.RecordingProducer.append, Producer.append),
        (recording.RecordingProducer.schedule, Producer.schedule),
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
    """The first task of a chain is recorded; a worker would publish the others."""
    track.s("signed", user_id="u1").apply_async(countdown=1)
    chain(track.si("first"), track.si("second")).apply_async()
    assert names(events) == ["signed", "first"]


def test_the_arguments_are_recorded_as_a_message_carries_them(events):
    """JSON has no tuples and no dates; Celery turns some of them back."""
    track.apply_async(("later",), {"timestamp": AT, "properties": {"at": AT}}, queue="q")
    events.assert_tracked("later", timestamp=AT, properties={"at": AT})


def test_threads_are_recorded_and_each_has_a_way_of_its_own(events):
    """A thread that publishes must not mark the event that another stores meanwhile."""

    def call(n):
        if n % 2:
            return track.delay("now", user_id=f"u{n}")
        return track.apply_async(("later",), {"user_id": f"u{n}"}, queue="mm.deliver")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(call, range(400)))

    assert {record.fields["user_id"] for record in events.events} == {f"u{n}" for n in range(400)}
    ways = {(record.event, record.through_broker) for record in events.events}
    assert ways == {("now", False), ("later", True)}


def test_the_newest_recorder_takes_every_call_and_then_the_one_before():
    with record() as outer:
        track.delay("one")
        with record() as inner:
            track.delay("two")
        track.delay("three")

    assert (names(outer), names(inner)) == (["one", "three"], ["two"])


def test_recorders_may_end_in_any_order(fresh):
    """Two threads that record at once must not leave a recorder behind."""
    fresh(MM_TASKS_REDIS_URL=AWAY)
    first, second = record(), record()
    with first as kept:
        newest = second.__enter__()
    track.delay("one")
    second.__exit__(None, None, None)

    assert names(newest) == ["one"]
    assert not kept.events
    with pytest.raises(BufferUnavailable):
        track.delay("two")


def test_after_the_block_the_earlier_runtime_is_back_even_if_it_failed(fresh):
    """Its connections are open; another runtime would open them again."""
    fresh(MM_TASKS_REDIS_URL=AWAY)
    before = runtime.current()
    with record():
        assert runtime.current() is not before
    assert runtime.current() is before
    with pytest.raises(KeyError), record() as events:
        raise KeyError

    assert runtime.current() is before
    with pytest.raises(BufferUnavailable):
        track.delay("one")
    assert not events.events


def test_an_attribute_that_needs_redis_names_the_reason_of_its_absence(events):  # noqa: ARG001 - records
    with pytest.raises(AttributeError, match="recorded here and not stored"):
        runtime.current().deliveries  # noqa: B018


def test_clear_removes_the_records_and_keeps_the_suppressed_persons(events):
    events.suppress(user_id="u1")
    track.delay("one")
    track.delay("one", user_id="u1")
    events.clear()

    assert not events.events
    assert not events.suppressed
    assert not track.delay("one", user_id="u1").accepted
