"""Fingerprints of brokers: the same for two processes of one broker, whatever it is called."""

import pytest
from kombu import Connection

from mm_tasks import identify, runtime, track
from mm_tasks.buffer import heartbeats
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.connections import redis_client
from mm_tasks.connections.url import parse
from mm_tasks.tasks import publisher
from mm_tasks.tasks.broker_address import fingerprint

BUFFER = "redis://:pw@redis:6379/0"


def of(url, buffer=BUFFER, **options):
    return fingerprint(Connection(url, transport_options=options), parse(buffer))


def of_buffer(url):
    """As where the broker is the buffer's Redis."""
    address = redis_client.broker(parse(url))
    options = address.transport_options
    return fingerprint(Connection(address.url, transport_options=options), parse(url))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("amqp://a:secret@rabbit//", "amqp://b:other@rabbit:5672//"),
        ("pyamqp://rabbit", "amqp://RABBIT//"),
        ("amqp://localhost", "amqp://127.0.0.1"),
        ("amqp://one;amqp://two", "amqp://two;amqp://one"),
        ("redis://elsewhere:6379/0", "redis://u:pw@elsewhere"),
    ],
)
def test_a_broker_is_the_same_whatever_the_login_and_the_spelling(one, other):
    assert of(one) == of(other)


def test_different_brokers_differ():
    urls = (
        *("amqp://rabbit//", "amqp://rabbit/v", "amqp://rabbit:5673//", "amqp://other//"),
        *("redis://elsewhere/0", "redis://elsewhere/1", "redis://redis/0", "redis://redis/1"),
    )
    prefixed = of("redis://redis/0", global_keyprefix="shop:")

    assert len({*map(of, urls), prefixed}) == len(urls) + 1


@pytest.mark.parametrize(
    ("inside", "outside"),
    [
        ("redis://redis:6379/0", "redis://127.0.0.1:6380/0"),
        ("redis://redis:6379/0", "unix:///run/redis.sock?db=0"),
        ("redis://:pw@redis/3", "rediss://redis.example.com:6390/3"),
        ("sentinel://a,b/0?master_name=m", "sentinel://c/0?master_name=m"),
    ],
)
def test_the_buffers_server_is_one_broker_by_any_name(inside, outside):
    """A container names it `redis`, a program on the host 127.0.0.1."""
    assert of_buffer(inside) == of_buffer(outside)


def test_another_database_of_the_buffers_server_is_another_broker():
    assert of_buffer("redis://redis/0") != of_buffer("redis://redis/1")
    assert of_buffer("unix:///r.sock?db=0") != of_buffer("unix:///r.sock?db=1")


def test_a_process_counts_what_it_publishes_where_no_worker_listens(
    redis, redis_url, fresh, caplog
):
    """It did not import the app that has the tasks; its messages wait for ever."""
    fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_BATCH_EVENTS_MAX="1")
    heartbeats.write(redis, "default", "worker", "w@h", ["mm.deliver"], broker="another")
    for lane in (track, identify):
        lane.delay("a", user_id="u")
        runtime.current().nudges.begin("deliver")
    (noted,) = heartbeats.read_publishers(redis, "default")

    assert redis.hget(ProjectKeys("default").counts, "unserved_publishes") == b"1"
    assert caplog.text.count("published_where_no_worker_listens") == 1
    assert noted.broker == publisher.own_broker()
    redis.delete(ProjectKeys("default").nudges)
    fresh()
    heartbeats.write(redis, "default", "worker", "w@h", ["mm.deliver"], broker=noted.broker)
    track.delay("a")
    assert redis.hget(ProjectKeys("default").counts, "unserved_publishes") == b"1"
