"""`adelay` and `adelay_many`: the results and errors of `delay`, on any event loop.

Warnings are errors here, so an unclosed connection fails its test.
"""

import asyncio
import gc
import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import mm_tasks
from mm_tasks import identify, runtime, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import tag
from mm_tasks.connections.pool import CONNECTIONS_MAX
from mm_tasks.errors import BufferUnavailable
from tests.tasks.test_redis_away import refused, silent

KEYS = ProjectKeys("default")
WAITING = KEYS.lane("track").waiting


@pytest.fixture(autouse=True)
def collected():
    """Report an unclosed connection within its test, not at a later collection."""
    yield
    gc.collect()


@pytest.fixture
def connections(redis):
    """Return a function that returns the number of connections made since, and still open."""

    def ids():
        return {client["id"] for client in redis.client_list()}

    before = ids()
    return lambda: len(ids() - before)


def assert_all_closed(connections):
    """The server notices a closed socket a little later."""
    ends_at = time.monotonic() + 10
    while connections() and time.monotonic() < ends_at:
        time.sleep(0.01)

    assert not connections()


def events_of(stored, name="event"):
    return [event[name] for event in stored()]


async def until_one_is_stored(redis):
    while not redis.llen(WAITING):  # noqa: ASYNC110 - only Redis knows
        await asyncio.sleep(0)


def test_once_adelay_returns_the_event_is_in_redis(stored):
    async def main():
        return (
            await track.adelay("a", user_id="u"),
            await track.adelay(event="b"),
            await identify.adelay(anonymous_id="a", user_id="u"),
            *await track.adelay_many({"event": "c"} for _ in range(2_500)),
        )

    a, b, link, *many = asyncio.run(main())
    ids = [event["event_id"] for event in stored()]

    assert ids == [a.id, b.id, *(receipt.id for receipt in many)]
    assert link.accepted
    assert stored("identify") == [{"anonymous_id": "a", "user_id": "u"}]


def test_a_context_applies_to_calls_on_a_loop(stored):
    async def of(visitor):
        with mm_tasks.context(anonymous_id=visitor):
            await asyncio.sleep(0)
            await track.adelay("e")

    async def main():
        await asyncio.gather(*(of(f"v{i}") for i in range(20)))

    asyncio.run(main())
    assert set(events_of(stored, "anonymous_id")) == {f"v{i}" for i in range(20)}


@pytest.mark.parametrize("calls", [1, 150], ids=["one call", "more than there are connections"])
@pytest.mark.parametrize("state", [refused, silent])
def test_redis_that_refuses_or_never_answers_fails_within_a_second(fresh, state, calls):
    async def call():
        began = time.monotonic()
        with pytest.raises(BufferUnavailable):
            await track.adelay("e")
        return time.monotonic() - began

    async def main():
        return await asyncio.gather(*(call() for _ in range(calls)))

    with state() as port:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")

        assert max(asyncio.run(main())) < 1.3


def test_a_frozen_redis_fails_within_a_second_and_is_used_again_once_it_thaws(redis, stored):
    """The next call does not receive the late reply to a call that timed out."""

    async def main():
        await track.adelay("before")
        redis.client_pause(1500)
        began = time.monotonic()
        with pytest.raises(BufferUnavailable) as caught:
            await track.adelay("during")
        took_s = time.monotonic() - began
        await asyncio.sleep(1.5)
        return took_s, caught.value.maybe_stored, await track.adelay_many([{"event": "after"}] * 3)

    took_s, maybe_stored, receipts = asyncio.run(main())

    assert took_s < 1.3
    assert maybe_stored == 1
    assert [event["event_id"] for event in stored()[-3:]] == [receipt.id for receipt in receipts]


@pytest.mark.parametrize("steps", [0, 1, 2, 5], ids="blocked after {} steps of the call".format)
def test_a_blocked_loop_is_not_taken_for_a_silent_redis(stored, steps):
    """The reply arrived meanwhile: slow code of a host must not make the caller store it twice."""

    async def main():
        call = asyncio.create_task(track.adelay("e"))
        for _ in range(steps):
            await asyncio.sleep(0.0005)
        time.sleep(1.5)  # noqa: ASYNC251 - what the host should not do
        return await call

    receipt = asyncio.run(main())

    assert [event["event_id"] for event in stored()] == [receipt.id]


def test_a_failure_midway_reports_the_numbers_of_stored_and_maybe_stored_events(redis, stored):
    async def main():
        call = asyncio.create_task(track.adelay_many([{"event": "e"}] * 8_000))
        await until_one_is_stored(redis)
        redis.client_pause(1_500)
        with pytest.raises(BufferUnavailable) as caught:
            await call
        return caught.value

    error = asyncio.run(main())

    assert 1_000 <= error.stored < 8_000
    assert error.maybe_stored == 1_000
    # The server answers again only after its pause, and has then taken what it was sent.
    assert len(stored()) in {error.stored, error.stored + 1_000}


def test_the_end_of_a_loop_closes_its_one_pool(connections, stored):
    async def main():
        await asyncio.gather(*(track.adelay("e") for _ in range(400)))
        first = runtime.current().async_clients.current()
        assert first is runtime.current().async_clients.current()
        assert 1 <= connections() <= 10

    asyncio.run(main())

    assert_all_closed(connections)
    assert len(stored()) == 400


def test_aclose_closes_the_pool_and_the_next_call_opens_one(connections, stored):
    async def main():
        await mm_tasks.aclose()
        await track.adelay("a")
        await mm_tasks.aclose()
        assert_all_closed(connections)
        await track.adelay("b")
        await mm_tasks.aclose()
        await mm_tasks.aclose()

    asyncio.run(main())
    assert events_of(stored) == ["a", "b"]


def test_aclose_waits_for_running_and_queued_calls(redis, connections, stored):
    async def main():
        calls = [asyncio.create_task(track.adelay("e")) for _ in range(200)]
        await until_one_is_stored(redis)
        await asyncio.gather(mm_tasks.aclose(), mm_tasks.aclose())
        assert all(call.done() for call in calls)
        assert_all_closed(connections)
        await asyncio.gather(*calls)

    asyncio.run(main())
    assert len(stored()) == 200


def test_a_cancelled_aclose_closes_the_pool_all_the_same(connections, stored):
    async def main():
        for steps in range(4):
            await track.adelay("e")
            closing = asyncio.create_task(mm_tasks.aclose())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.gather(closing, return_exceptions=True)
        await mm_tasks.aclose()
        await asyncio.sleep(0.01)

    asyncio.run(main())

    assert_all_closed(connections)
    assert len(stored()) == 4


def test_consecutive_loops_and_one_closed_by_hand_leave_no_connection(connections, stored):
    for _ in range(20):
        asyncio.run(track.adelay("e"))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(track.adelay("e"))
    loop.run_until_complete(mm_tasks.aclose())
    loop.close()

    assert len(stored()) == 21
    assert_all_closed(connections)
    assert runtime.current().async_clients._clients == {}  # noqa: SLF001 - an entry would keep its loop alive


def test_loops_in_several_threads_do_not_mix(stored):
    async def main(n):
        return await asyncio.gather(*(track.adelay("e", user_id=f"t{n}") for _ in range(100)))

    with ThreadPoolExecutor(4) as threads:
        receipts = list(threads.map(lambda n: asyncio.run(main(n)), range(4)))
    by_id = {event["event_id"]: event["user_id"] for event in stored()}

    assert len(by_id) == len(stored()) == 400
    assert by_id == {receipt.id: f"t{n}" for n, own in enumerate(receipts) for receipt in own}


def test_cancelled_calls_do_not_affect_other_calls(redis, stored):
    """Each call that returned stored its event once and received its own receipt."""
    redis.sadd(KEYS.fence, tag("default", "user", "gone"))
    chance = random.Random(7)
    returned, cancelled = [], 0

    async def call(n):
        is_gone = n % 3 == 0
        receipt = await track.adelay("e", event_id=f"e{n}", user_id="gone" if is_gone else "u")
        # The reply to another call would differ.
        assert receipt.accepted is not is_gone
        if not is_gone:
            returned.append(receipt.id)

    async def main():
        nonlocal cancelled
        for start in range(0, 3_000, 150):
            calls = [asyncio.create_task(call(n)) for n in range(start, start + 150)]
            for _ in range(40):
                await asyncio.sleep(chance.uniform(0, 0.0008))
                for task in chance.sample(calls, 3):
                    task.cancel()
            for result in await asyncio.gather(*calls, return_exceptions=True):
                if isinstance(result, asyncio.CancelledError):
                    cancelled += 1
                elif result is not None:
                    raise result
        # The pool lost no connection: it serves as many concurrent calls as it has connections.
        await asyncio.gather(*(call(n) for n in range(10_000, 10_060)))
        pool = runtime.current().async_clients.current()
        assert 1 <= len(pool._idle) <= pool._turns._value == CONNECTIONS_MAX  # noqa: SLF001

    asyncio.run(main())
    ids = [event["event_id"] for event in stored()]

    assert cancelled > 100
    assert len(ids) == len(set(ids))
    assert set(returned) <= set(ids)
    assert len(ids) - len(returned) <= cancelled


def test_a_timeout_of_the_caller_is_a_cancelled_call(fresh):
    with silent() as port:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        with pytest.raises(TimeoutError):
            asyncio.run(asyncio.wait_for(track.adelay("e"), 0.1))
