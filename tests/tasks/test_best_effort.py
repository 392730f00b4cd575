"""Redis away or full: what calls cost, what they return if they drop, and the counts."""

import asyncio
import time
from functools import partial

import pytest
from redis import Redis

import mm_tasks
from mm_tasks import forget, identify, runtime, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.errors import BufferFull, BufferUnavailable, ConfigurationError, InvalidEvent
from mm_tasks.monitoring import status
from tests.tasks.test_redis_away import refused, running

AWAY = "redis://127.0.0.1:1/0"


@pytest.fixture
def away(fresh):
    """Redis refuses connections."""
    with refused() as port:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        yield


@pytest.fixture
def full(fresh, redis, redis_url):  # noqa: ARG001 - `redis` empties the server
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_BUFFER_BYTES_MAX="1")


def run(coroutine):
    return [asyncio.run(coroutine())]


def call_all():
    """Return the receipts of each kind of call."""
    many = [{"event": "e"}] * 2
    return [
        track.delay("e"),
        track.apply_async(("e",)),
        identify.delay("a", "u"),
        *track.delay_many(many),
        *run(lambda: track.adelay("e")),
        *run(lambda: identify.adelay("a", "u")),
        *run(lambda: track.adelay_many(many))[0],
    ]


def told(receipts):
    return {(receipt.accepted, receipt.reason) for receipt in receipts}


@pytest.mark.usefixtures("away")
def test_without_redis_no_call_in_the_block_raises():
    with mm_tasks.best_effort():
        receipts = call_all()

    assert told(receipts) == {(False, "unavailable")}
    assert all(receipt.id for receipt in receipts if receipt is not receipts[2])
    with pytest.raises(BufferUnavailable):
        track.delay("e")


@pytest.mark.usefixtures("full")
def test_with_a_full_buffer_no_call_in_the_block_raises():
    with mm_tasks.best_effort():
        receipts = call_all()

    assert told(receipts) == {(False, "full")}
    with pytest.raises(BufferFull):
        track.delay("e")


@pytest.mark.usefixtures("away")
def test_the_setting_drops_everywhere_and_a_block_may_forbid_it(fresh):
    fresh(MM_TASKS_ON_BUFFER_UNAVAILABLE="drop")
    assert told(call_all()) == {(False, "unavailable")}
    with mm_tasks.best_effort(enabled=False), pytest.raises(BufferUnavailable):
        track.delay("e")
    with mm_tasks.best_effort(enabled=False), mm_tasks.best_effort():
        assert not track.delay("e").accepted


@pytest.mark.usefixtures("away")
def test_an_invalid_event_raises_although_events_are_dropped():
    """It is a bug of the caller, and never goes away by itself."""
    with mm_tasks.best_effort(), pytest.raises(InvalidEvent):
        track.delay("e", properties="no mapping")


def test_forget_always_raises(fresh, redis_url):
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_ON_BUFFER_UNAVAILABLE="drop")
    fresh(MM_TASKS_AUDIT_URL="postgresql://127.0.0.1:1/none")
    with mm_tasks.best_effort(), pytest.raises(mm_tasks.errors.AuditUnavailable):
        forget.delay(user_id="u", requested_by="dpo")


@pytest.mark.usefixtures("away")
def test_a_message_is_never_dropped(fresh):
    """The worker retries it."""
    fresh(MM_TASKS_ON_BUFFER_UNAVAILABLE="drop")
    with mm_tasks.best_effort(), pytest.raises(BufferUnavailable):
        track.apply(("e",), throw=True)


@pytest.mark.usefixtures("away")
def test_the_block_holds_for_tasks_of_a_loop_and_for_to_thread_and_ends_with_itself():
    async def main():
        with mm_tasks.best_effort():
            inside = asyncio.create_task(track.adelay("e"))
            threaded = await asyncio.to_thread(partial(track.delay, "e"))
        with pytest.raises(BufferUnavailable):
            await track.adelay("e")
        return [await inside, threaded]

    assert told(asyncio.run(main())) == {(False, "unavailable")}


def test_receipts_say_why_an_event_was_not_stored(stored, redis):
    redis.sadd(ProjectKeys("default").fence, tag("default", "user", "gone"))
    receipts = track.delay_many(
        [{"event": "a"}, {"event": "b", "user_id": "gone"}, {"event": ""}], on_error="skip"
    )

    assert [(receipt.accepted, receipt.reason) for receipt in receipts] == [
        (True, None),
        (False, "suppressed"),
        (False, "invalid"),
    ]
    assert len(stored()) == 1


def test_an_unknown_choice_is_refused(fresh):
    fresh(MM_TASKS_ON_BUFFER_UNAVAILABLE="ignore")
    with pytest.raises(ConfigurationError, match="MM_TASKS_ON_BUFFER_UNAVAILABLE"):
        track.delay("e")


def refused_of(redis):
    shown = status.read(redis, "default")
    return shown["refused"], shown["counts"]["refused"]


def test_refused_events_are_counted_with_the_next_event_that_is_stored(redis, stored):
    for call in (
        lambda: track.delay("e", properties="no mapping"),
        lambda: track.delay("e", event="e"),
        lambda: track.apply_async(("",), countdown=5),
        lambda: track.delay_many([{"event": ""}, {"event": "e"}, {"event": ""}]),
        lambda: asyncio.run(identify.adelay()),
    ):
        with pytest.raises(InvalidEvent):
            call()
    assert refused_of(redis) == ({"full": 0, "unavailable": 0, "invalid": 0}, 0)
    track.delay("e")

    assert refused_of(redis) == ({"full": 0, "unavailable": 0, "invalid": 6}, 6)
    assert redis.hget(ProjectKeys("default").counts, "identify:refused:invalid") == b"1"
    assert len(stored()) == 1


@pytest.mark.usefixtures("full")
def test_a_full_buffer_takes_the_counts_of_what_it_refuses(redis):
    """An alert must not wait for room."""
    for _ in range(3):
        with pytest.raises(BufferFull):
            track.delay("e")
    runtime.current().refusals._next_s = 0  # noqa: SLF001 - a second later
    with pytest.raises(BufferFull):
        track.delay("e")

    assert refused_of(redis)[0]["full"] == 3


def test_a_part_of_many_that_was_not_tried_is_counted_too(fresh):
    with running() as (port, _), Redis(port=port) as redis:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        fresh(MM_TASKS_BUFFER_BYTES_MAX="100000")
        with pytest.raises(BufferFull) as caught:
            track.delay_many([{"event": "e"}] * 3_500)
        stored = caught.value.stored
        runtime.current().refusals.store(runtime.current().producer_redis.connection_pool)

        assert refused_of(redis)[0]["full"] == 3_500 - stored


def test_with_a_frozen_redis_1000_calls_cost_little_and_are_all_counted(fresh, caplog):
    """The first call waits for its answer; the others know. P1 holds for what was accepted."""
    with running() as (port, freeze), Redis(port=port) as redis:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        track.delay("before")
        thaw = freeze()
        with mm_tasks.best_effort():
            began = time.monotonic()
            receipts = [track.delay("e", user_id="u") for _ in range(1_000)]
            took_s = time.monotonic() - began
        thaw()
        assert told(receipts) == {(False, "unavailable")}
        time.sleep(max(0, 1.1 - took_s))  # until the next probe
        with mm_tasks.best_effort():
            while not track.delay("after").accepted:
                time.sleep(0.05)
        runtime.current().refusals.store(runtime.current().producer_redis.connection_pool)
        shown = status.read(redis, "default")

        assert shown["refused"]["unavailable"] >= 1_000
        # Who waited for an answer: the first call, and one a second on a machine that is busy.
        # These may be stored all the same.
        assert 1 <= shown["unanswered"] <= 1 + took_s
        assert 2 <= shown["counts"]["accepted"] <= 2 + shown["unanswered"]
    assert [line.message for line in caplog.records].count("events_dropped") == 1


def test_the_breaker_of_a_process_serves_loops_and_forget_too(fresh, tmp_path):
    """An erasure is committed, and not fenced yet. Nobody waits for Redis a second time."""
    with running() as (port, freeze):
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        fresh(MM_TASKS_AUDIT_URL=f"sqlite:///{tmp_path / 'audit.sqlite'}")
        fresh(MM_TASKS_STATE_DIR=str(tmp_path))
        assert forget.delay(user_id="a", requested_by="dpo").fenced
        thaw = freeze()
        with pytest.raises(BufferUnavailable):
            track.delay("e")
        breaker = runtime.current().producer_redis.connection_pool.breaker
        breaker._probe_at_s += 60  # noqa: SLF001 - no probe, however busy the machine is
        with pytest.raises(BufferUnavailable, match="Redis has been away for"):
            asyncio.run(track.adelay("e"))
        receipt = runtime.current().erasure_service.request(_request("b"))
        thaw()

        # Redis answers again, but nobody asked it.
        assert not receipt.is_fenced
        breaker._probe_at_s -= 60  # noqa: SLF001
        until_open(lambda: forget.delay(user_id="c", requested_by="dpo").fenced)


def until_open(is_open):
    ends_at = time.monotonic() + 10
    while not is_open():
        assert time.monotonic() < ends_at
        time.sleep(0.1)


def _request(user_id):
    from datetime import UTC, datetime

    from mm_tasks.erasure.request import request_of

    return request_of({"user_id": user_id, "requested_by": "dpo"}, datetime.now(UTC))
