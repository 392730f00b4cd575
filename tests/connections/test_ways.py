"""Every way to a Redis, with a real server at its end: producers, event loops, the broker."""

from __future__ import annotations

import asyncio
import gc
import socket
import time

import pytest
from kombu.exceptions import OperationalError

from mm_tasks import runtime, track
from mm_tasks.celery_app import DELIVER, broker, publish_options
from mm_tasks.errors import BufferUnavailable
from mm_tasks.keys import ProjectKeys
from tests.connections.servers import SENTINEL_PASSWORD, until

WAYS = ("unix", "rediss", "sentinel", "sentinels")
WAITING = ProjectKeys("default").lane("track").waiting


@pytest.fixture
def redis(servers):
    """All data servers are empty."""
    servers.alone.redis.flushall()
    servers.primary().flushall()


@pytest.fixture(params=WAYS)
def url(request, servers, redis, fresh):  # noqa: ARG001 - `redis` empties the servers
    url = servers.urls[request.param]
    fresh(MM_TASKS_REDIS_URL=url)
    return url


def is_stored(event):
    try:
        return track.delay(event).accepted
    except BufferUnavailable:
        return False


def stored():
    return runtime.current().worker_redis.llen(WAITING)


def test_a_producer_stores_and_connects_anew_once_it_was_cut_off(url, servers):
    """The kept connections of producers are made apart from redis-py's pool."""
    track.delay("a")
    for server in (servers.alone.redis, servers.primary()):
        server.client_kill_filter(_type="normal", skipme=True)
    # What stands in front hears of it a little later.
    until(lambda: is_stored("b"))

    assert stored() >= 2


def test_an_event_loop_stores_and_leaves_nothing_open(url):
    async def main():
        await asyncio.gather(*(track.adelay("a") for _ in range(20)))

    asyncio.run(main())
    gc.collect()

    assert stored() == 20


def test_the_broker_is_the_same_redis(url):
    """kombu spells TLS, sockets and sentinels in its own way."""
    options = publish_options()
    with options["connection"] as connection:
        queue = connection.SimpleQueue(DELIVER)
        queue.put({"n": 1})

        assert queue.get(timeout=5).payload == {"n": 1}
    # In the database of the URL, not in the first.
    assert runtime.current().worker_redis.exists(f"_kombu.binding.{DELIVER}")
