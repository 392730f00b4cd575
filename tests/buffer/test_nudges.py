"""The marks by which nobody asks for a flush or a sweep that is asked for already."""

import pytest
from redis import Redis

from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.batches import BatchLimits
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.nudges import Nudges
from mm_tasks.buffer.producer import Producer
from mm_tasks.buffer.refusals import Refusals
from tests.conftest import patient_client

KEYS = ProjectKeys("p")
SERVED = ("mm.p.deliver", "mm.p.identify")
HOUR_S = 3600


@pytest.fixture
def nudges(redis):
    return Nudges(redis, "p")


def pass_time(redis, seconds):
    """Move all marks into the past, and heartbeats not: a worker goes on writing them."""
    for kind, mark in redis.hgetall(KEYS.nudges).items():
        asked_us, *times = mark.decode().split()
        redis.hset(KEYS.nudges, kind, " ".join([str(int(asked_us) - round(seconds * 1e6)), *times]))


def worker_is_alive(redis, queues=SERVED):
    heartbeats.write(redis, "p", "worker", "w@h", queues, broker="b")


def test_nobody_asks_for_what_is_asked_for_until_it_begins(nudges):
    """Each kind of queue has a mark of its own."""
    assert [nudges.ask("deliver"), nudges.ask("deliver"), nudges.ask("forget")] == [1, 0, 1]
    nudges.begin("deliver")

    assert [nudges.ask("deliver"), nudges.ask("forget")] == [1, 0]


@pytest.mark.parametrize(
    ("queues", "after_s", "is_asked"),
    [
        (SERVED, 2, False),
        (SERVED, 4, True),
        (("mm.deliver",), 4, True),  # a worker of an earlier release, which had no project there
        (("mm.p.forget",), 30, False),
        ((), 30, False),
    ],
)
def test_a_lost_message_costs_seconds_where_a_worker_serves(
    nudges, redis, queues, after_s, is_asked
):
    """Without a worker the message waits in the broker, and one is enough."""
    worker_is_alive(redis, queues)
    nudges.ask("deliver")
    pass_time(redis, after_s)

    assert nudges.ask("deliver") == is_asked


def test_a_worker_that_comes_back_is_asked_at_once(nudges, redis):
    """The message may be lost, with a broker that was emptied meanwhile."""
    nudges.ask("deliver")
    pass_time(redis, 50)
    assert not nudges.ask("deliver")
    worker_is_alive(redis)

    assert nudges.ask("deliver")


def test_a_worker_that_died_before_the_message_does_not_count(nudges, redis):
    """Otherwise its last heartbeat, kept for a day, would let a message go out each 3 s."""
    worker_is_alive(redis)
    written_ms = int(redis.hget(KEYS.heartbeats, "worker:w@h").split()[0])
    redis.hset(KEYS.heartbeats, "worker:w@h", f"{written_ms - 60_000} mm.p.deliver")
    nudges.ask("deliver")
    pass_time(redis, 30)

    assert not nudges.ask("deliver")


def test_without_a_worker_a_night_leaves_a_few_messages(nudges, redis):
    asked = 0
    for _ in range(12 * HOUR_S // 10):
        asked += nudges.ask("deliver")
        pass_time(redis, 10)

    assert 2 <= asked <= 20


@pytest.mark.parametrize("by_s", [-600, 600, -HOUR_S, 24 * HOUR_S])
def test_a_clock_that_steps_blocks_nothing(nudges, redis, by_s):
    """A mark in the future was written before the clock was set back."""
    worker_is_alive(redis)
    nudges.ask("deliver")
    pass_time(redis, by_s)

    assert nudges.ask("deliver")
    assert not nudges.ask("deliver")


@pytest.mark.parametrize("mark", ["", "1", "x y", "1 2 3", "9" * 30 + " 0"])
def test_a_mark_of_another_release_blocks_nothing(nudges, redis, mark):
    redis.hset(KEYS.nudges, "deliver", mark)

    assert nudges.ask("deliver")


def test_a_user_without_the_right_to_read_heartbeats_still_asks(redis, redis_url):
    """The first file of rights that we gave out had no HGETALL for producers."""
    rights = "+@connection +script|load +evalsha +time +hget +hset +hdel"
    redis.execute_command("ACL SETUSER mean on >x resetkeys ~{mm:* -@all", *rights.split())
    try:
        with Redis.from_url(redis_url, username="mean", password="x") as mean:
            nudges = Nudges(mean, "p")
            assert nudges.ask("deliver")
            pass_time(redis, 30)
            assert not nudges.ask("deliver")
            pass_time(redis, 60)
            assert nudges.ask("deliver")
    finally:
        redis.execute_command("ACL DELUSER mean")


def test_full_batches_ask_once_a_second_however_fast_a_flush_begins(nudges, redis):
    """With a backlog every event finds a full batch, and each would publish a message."""
    limits = BatchLimits(1, 1000, 0)
    client = patient_client(redis)
    producer = Producer(client, Refusals("p"), "p", "track", limits, held_bytes_max=10_000)

    def append():
        return producer.append([(b"{}", None, None)]).nudge

    asked = []
    for _ in range(5):
        asked.append(append())
        nudges.begin("deliver")
    assert asked == [True, False, False, False, False]
    pass_time(redis, 1)

    assert append()
    # Beat has its own period.
    nudges.begin("deliver")
    assert nudges.ask("deliver")
    client.close()
