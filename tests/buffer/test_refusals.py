"""Counts of refused events on the way from a process to a real Redis."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.refusals import Refusals
from mm_tasks.connections.redis_client import client
from mm_tasks.connections.url import parse
from tests.conftest import patient_client

COUNTS = ProjectKeys("p").counts


class Clock:
    now_s = 100.0

    def __call__(self):
        return self.now_s


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def refusals(clock):
    return Refusals("p", clock=clock)


@pytest.fixture
def pool(redis):
    with patient_client(redis) as ours:
        yield ours.connection_pool


@pytest.fixture
def away():
    """A pool that reaches no server."""
    with client(parse("redis://127.0.0.1:1/0"), connect_s=1, answer_s=1) as ours:
        yield ours.connection_pool


def counted(redis):
    return {name.decode(): int(n) for name, n in redis.hgetall(COUNTS).items()}


def test_counts_are_stored_once_by_lane_and_reason(redis, refusals, pool):
    refusals.add("track", "full", 2)
    refusals.add("track", "unavailable", 3, unanswered=1)
    refusals.add("identify", "invalid", 1)
    refusals.store(pool)
    refusals.store(pool)

    assert counted(redis) == {
        "track:refused:full": 2,
        "track:refused:unavailable": 3,
        "track:unanswered": 1,
        "identify:refused:invalid": 1,
    }


def test_they_are_due_at_most_once_a_second(clock, refusals, pool):
    assert not refusals.is_due
    refusals.add("track", "full", 1)
    assert refusals.is_due
    refusals.store(pool)
    refusals.add("track", "full", 1)
    assert not refusals.is_due
    clock.now_s += 1.1

    assert refusals.is_due


def test_counts_that_redis_did_not_take_stay_for_the_next_time(redis, refusals, pool, away):
    refusals.add("track", "unavailable", 3, unanswered=1)
    refusals.store(away)
    refusals.add("track", "unavailable", 4)
    refusals.store(pool)

    assert counted(redis) == {"track:refused:unavailable": 7, "track:unanswered": 1}


def test_a_redis_at_its_maxmemory_takes_them(servers, refusals):
    """There they say why calls fail."""
    server = servers()
    with patient_client(server.client) as ours:
        refusals.add("track", "full", 1)
        refusals.store(ours.connection_pool)
        server.fill()
        refusals.add("track", "full", 5)
        refusals.store(ours.connection_pool)

    assert counted(server.client) == {"track:refused:full": 6}


def test_threads_lose_no_count(redis, refusals, pool):
    def work(_):
        for _ in range(200):
            refusals.add("track", "invalid", 1)
            refusals.store(pool)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    refusals.store(pool)

    assert counted(redis) == {"track:refused:invalid": 1600}


def test_drops_are_logged_once_a_minute_with_their_number(clock, refusals, caplog):
    for _ in range(50):
        refusals.log_dropped("unavailable", 2)
    clock.now_s += 61
    refusals.log_dropped("full", 1)

    lines = [(line.message, line.events, line.reason) for line in caplog.records]
    assert lines == [("events_dropped", 2, "unavailable"), ("events_dropped", 99, "full")]
