"""The pool on a real server: how many connections it opens, keeps, and lends."""

import asyncio
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis.exceptions import RedisError

from mm_tasks import runtime, track
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.connections import pool
from mm_tasks.connections.breaker import PROBE_INTERVAL_S
from mm_tasks.connections.pool import CONNECTIONS_MAX
from mm_tasks.errors import BufferUnavailable

WAITING = ProjectKeys("default").lane("track").waiting


@pytest.fixture
def connections(redis, redis_url, fresh):
    """Return a function that returns the number of connections made since, and still open."""

    def ids():
        return {client["id"] for client in redis.client_list()}

    before = ids()
    fresh(MM_TASKS_REDIS_URL=redis_url)
    return lambda: len(ids() - before)


def in_threads(call, n):
    """Run a call in n threads at once and return the results."""
    begin = threading.Barrier(n)

    def run(_):
        begin.wait(30)
        return call()

    with ThreadPoolExecutor(n) as threads:
        return list(threads.map(run, range(n)))


@pytest.fixture
def _patient(monkeypatch):
    """How soon a call gives up is not the question, on a machine that is busy."""
    monkeypatch.setattr(runtime, "PRODUCER_ANSWER_S", 30.0)


@pytest.mark.usefixtures("_patient")
def test_a_burst_of_threads_opens_few_connections_and_fails_no_call(redis, connections):
    receipts = in_threads(lambda: track.delay("e"), 200)

    assert all(receipt.accepted for receipt in receipts)
    assert redis.llen(WAITING) == 200
    assert connections() <= CONNECTIONS_MAX


def test_redis_pys_own_commands_share_the_bound(connections):
    """As those of `forget`, of heartbeats and of workers."""
    client = runtime.current().worker_redis
    in_threads(lambda: client.get("{mm:default}:counts-no"), 60)

    assert connections() <= CONNECTIONS_MAX
    client.close()


def test_connections_that_were_idle_for_long_are_closed_by_the_next_call(connections):
    """A proxy may have dropped them without a word, and a server has other clients."""
    in_threads(lambda: track.delay("e"), CONNECTIONS_MAX)
    held = runtime.current().producer_redis.connection_pool
    held._idle = [(one, used_s - pool.IDLE_MAX_S) for one, used_s in held._idle]  # noqa: SLF001
    track.delay("e")

    assert connections() == 1
    # None of the turns was lost.
    assert len(held._idle) + len(held._unmade) == CONNECTIONS_MAX  # noqa: SLF001


def test_connections_of_a_loop_that_were_idle_for_long_are_closed_by_the_next_call(connections):
    async def main():
        await asyncio.gather(*(track.adelay("e") for _ in range(100)))
        held = runtime.current().async_clients.current()
        many = connections()
        held._idle = [(one, used_s - pool.IDLE_MAX_S) for one, used_s in held._idle]  # noqa: SLF001
        await track.adelay("e")
        # A transport closes its socket in the next steps of its loop.
        async with asyncio.timeout(10):
            while connections() != 1:  # noqa: ASYNC110 - only Redis knows
                await asyncio.sleep(0.01)
        return many

    assert asyncio.run(main()) > 1


def test_a_call_that_gets_no_turn_raises_in_time_and_stored_nothing(redis, connections):
    held = runtime.current().producer_redis.connection_pool
    lent = [held.get_connection() for _ in range(CONNECTIONS_MAX)]
    began = time.monotonic()
    with pytest.raises(BufferUnavailable) as caught:
        track.delay("e")
    took_s = time.monotonic() - began
    for connection in lent:
        held.release(connection)

    assert took_s < 1.4  # half a second for a busy machine
    assert caught.value.maybe_stored == 0
    # Not Redis was away: the breaker stays closed.
    assert track.delay("e").accepted
    assert redis.llen(WAITING) == 1
    assert connections() <= CONNECTIONS_MAX


def test_a_call_that_waited_for_its_turn_gives_up_no_later_than_others(redis, connections):
    """0.9 s bound the wait for a turn and the wait for the answer together."""
    held = runtime.current().producer_redis.connection_pool
    lent = [held.get_connection() for _ in range(CONNECTIONS_MAX)]
    redis.client_pause(3_000)
    began = time.monotonic()
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(track.delay, "e")
        time.sleep(0.5)
        held.release(lent.pop())
        error = call.exception(10)
    took_s = time.monotonic() - began
    for connection in lent:
        held.release(connection)

    assert isinstance(error, BufferUnavailable)
    assert error.maybe_stored == 1
    assert took_s < 1.3
    assert connections() <= CONNECTIONS_MAX


def test_calls_that_wait_for_a_turn_fail_together_once_redis_is_found_away(redis, connections):
    """Each would wait for its own timeout otherwise, one after the other."""
    track.delay("e")
    redis.client_pause(3_000)
    began = time.monotonic()

    def call():
        with pytest.raises(BufferUnavailable):
            track.delay("e")

    in_threads(call, 60)

    assert time.monotonic() - began < 1.4
    held = runtime.current().producer_redis.connection_pool
    assert len(held._idle) + len(held._unmade) == CONNECTIONS_MAX  # noqa: SLF001
    assert connections() <= CONNECTIONS_MAX


@pytest.mark.usefixtures("_patient")
def test_a_signal_handler_may_track_whatever_its_thread_does(redis, connections):
    """A lock that the interrupted call holds would never be released."""
    handled = []
    old = signal.signal(signal.SIGUSR1, lambda *_: handled.append(track.delay("of a handler")))
    stop = threading.Event()

    def disturb():
        sent = 0
        while not stop.wait(0.0005):
            # One at a time: handlers interrupt each other too.
            if len(handled) == sent:
                os.kill(os.getpid(), signal.SIGUSR1)
                sent += 1

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        for _ in range(300):
            track.delay("e")
    finally:
        stop.set()
        thread.join()
        signal.signal(signal.SIGUSR1, old)

    assert handled
    assert redis.llen(WAITING) == 300 + len(handled)
    assert connections() <= CONNECTIONS_MAX


def test_a_connection_that_cannot_be_made_costs_no_turn(fresh):
    fresh(MM_TASKS_REDIS_URL="redis://127.0.0.1:1/0")
    held = runtime.current().producer_redis.connection_pool
    for _ in range(3):
        with pytest.raises(RedisError):
            held.get_connection()
        held.breaker.answered()

    assert len(held._unmade) == CONNECTIONS_MAX  # noqa: SLF001


@pytest.mark.usefixtures("connections")
def test_a_script_that_redis_lost_is_loaded_by_the_probe(redis):
    """A restarted Redis has no scripts. Its answer says so, and must not count as silence."""
    current = runtime.current()
    assert current.nudges.ask("deliver")
    current.nudges.begin("deliver")
    current.producer_redis.connection_pool.breaker.failed()
    redis.script_flush()
    time.sleep(PROBE_INTERVAL_S)

    assert current.nudges.ask("deliver")
