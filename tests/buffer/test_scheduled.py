"""Scheduled records on a real server; `test_machine` has them among all other steps.

Sabotages that turn this file or the machine red, each tried on a copy: a member without its
serial; a purge by rank; a move that ignores the fence, the loaded fences or the bytes; a header
with the time of the call.
"""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from redis import Redis

from mm_tasks.buffer import snapshot
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Record
from mm_tasks.buffer.purge import Purge
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.buffer.scheduled import Scheduled
from mm_tasks.errors import BufferFull
from mm_tasks.monitoring import status
from tests.buffer.lane_buffer import (
    advance_scheduled,
    assert_adds_up,
    counts,
    opened,
    scheduled_records,
)
from tests.conftest import load_fences

KEYS = ProjectKeys("p")
LANE = KEYS.lane("track")
ANNA = tag("p", "user", "anna")
HOUR_MS = 3_600_000


@pytest.fixture
def buffer(redis):
    load_fences(redis)
    with opened(redis, "track", BatchLimits(4, 1000, 60_000)) as buffer:
        yield buffer
    assert_adds_up(redis)


def records(n, user_id=None, first=0):
    return [Record(b'{"n":%d}' % i, user_id, None) for i in range(first, first + n)]


def become_due(redis, by_ms=HOUR_MS):
    advance_scheduled(redis, LANE.scheduled, by_ms)


def bodies(stored):
    return [record[HEADER_BYTES:] for record in stored]


def waiting(redis):
    return bodies(redis.lrange(LANE.waiting, 0, -1))


def test_two_records_that_are_alike_are_both_kept(redis, buffer):
    """An identify has no id of its own, and a set would hold it once."""
    buffer.schedule(records(1) * 3, HOUR_MS)
    buffer.schedule(records(1), HOUR_MS)
    become_due(redis, 2 * HOUR_MS)
    buffer.scheduled.move_due()

    assert waiting(redis) == [b'{"n":0}'] * 4


def test_records_become_waiting_in_the_order_of_their_time(redis, buffer):
    for n, delay_ms in enumerate((3000, 1000, 2000, HOUR_MS)):
        buffer.schedule(records(1, first=n), delay_ms)
    become_due(redis, 3001)
    buffer.scheduled.move_due()

    assert waiting(redis) == [b'{"n":%d}' % n for n in (1, 2, 0)]
    assert bodies(scheduled_records(redis.zrange(LANE.scheduled, 0, -1))) == [b'{"n":3}']


def test_several_flushes_at_once_move_each_record_once(redis, redis_url, buffer):
    for first in range(0, 3000, 1000):
        buffer.schedule(records(1000, first=first), 1)
    time.sleep(0.002)

    def flush(_):
        with Redis.from_url(redis_url) as client:
            Scheduled(client, "p", "track").move_due(step=100)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(flush, range(4)))

    assert sorted(waiting(redis)) == sorted(record.body for record in records(3000))
    assert counts(redis)["track:scheduled"] == 0


def test_a_purge_misses_none_while_others_are_stored_and_moved(redis, buffer):
    """A rank would shift with each, so that a scan by rank steps over a record."""
    for n in range(40):
        buffer.schedule(records(50, "anna" if n % 2 else "bob", 50 * n), HOUR_MS + n)
    Fence(redis, "p").add([ANNA], "a store")
    removed = 0
    for step in buffer.scheduled.purge([ANNA], step=20):
        removed += sum(step[1::2])
        buffer.schedule(records(10, "bob"), 1 if removed % 3 else 2 * HOUR_MS)
        buffer.scheduled.move_due()

    assert removed == counts(redis)["track:erased"] == 1000
    left = scheduled_records(redis.zrange(LANE.scheduled, 0, -1))
    assert not [record for record in left if ANNA in record]
    assert sum(tag("p", "user", "bob") in record for record in left) >= 1000


def test_a_person_fenced_meanwhile_is_caught_when_the_record_is_due(redis, buffer):
    """The purge has passed, or ran in a worker of an earlier release, which knows no such place."""
    buffer.schedule(records(2, "anna") + records(1, "bob", 2), 1)
    Fence(redis, "p").add([ANNA], "a store")
    assert buffer.schedule(records(1, "anna"), HOUR_MS).suppressed == {0}
    time.sleep(0.002)
    buffer.scheduled.move_due()

    assert waiting(redis) == [b'{"n":2}']
    assert counts(redis)["track:erased"] == 2
    assert Purge(redis, "p").scan({"anna": [ANNA]})["anna"].removed["fence"] == 2


def test_a_scheduled_record_waits_from_its_time_on(redis, buffer):
    """One for tomorrow must not raise an alert today, and one that no flush moves must."""
    buffer.schedule(records(1), 2 * HOUR_MS)
    state = snapshot.read(redis, "p")
    assert (state.oldest_waiting_s, state.waiting) == (None, 0)
    assert 7100 < state.next_due_s <= 7200

    become_due(redis, 2 * HOUR_MS + 60_000)
    state = snapshot.read(redis, "p")
    assert (state.next_due_s, state.waiting) == (0, 0)
    assert 60 <= state.oldest_waiting_s < 120


def test_its_age_begins_when_it_is_due(redis, buffer):
    buffer.schedule(records(1), 50)
    time.sleep(0.06)
    buffer.scheduled.move_due()

    assert buffer.claim(linger=True) is None, "it lingers as any other"
    assert snapshot.read(redis, "p").oldest_waiting_s < 30


def test_at_maxmemory_records_still_move_and_are_purged(servers):
    server = servers()
    load_fences(server.client)
    with opened(server.client, "track", BatchLimits(4, 1000, 60_000)) as buffer:
        buffer.schedule(records(100, "anna"), HOUR_MS)
        buffer.schedule(records(100, "bob"), 100)
        Fence(server.client, "p").add([ANNA], "a store")
        # Scripts too are memory: what is to run was loaded before, as on any server in use.
        assert not any(buffer.scheduled.purge([tag("p", "user", "nobody")]))
        buffer.scheduled.move_due()
        server.fill()
        with pytest.raises(BufferFull):
            buffer.schedule(records(1), 1)
        time.sleep(0.1)

        assert sum(n for step in buffer.scheduled.purge([ANNA]) for n in step[1::2]) == 100
        buffer.scheduled.move_due()
        assert len(waiting(server.client)) == 100
        assert_adds_up(server.client)


def test_status_shows_the_place_and_the_next_time(redis, buffer):
    buffer.schedule(records(2), HOUR_MS)
    shown = status.read(redis, "p")

    assert (shown["counts"]["accepted"], shown["counts"]["scheduled"]) == (2, 2)
    assert 3500 < shown["next_due_s"] <= 3600
