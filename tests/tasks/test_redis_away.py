"""A Redis that is away never blocks a web request: refused, silent, frozen or dropped."""

import os
import signal
import socket
import time
from contextlib import contextmanager

import pytest
from redis import Redis

from mm_tasks import track
from mm_tasks.errors import BufferUnavailable
from tests.conftest import embedded

# The promise is 1 s; half a second more is for a busy machine.
DEADLINE_S = 1.5


@contextmanager
def refused():
    """Nobody listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    yield port


@contextmanager
def silent():
    """The connection is made, and no byte ever comes."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as sock:
        yield sock.getsockname()[1]


@contextmanager
def dropped():
    """No connection is made: the queue of the listener is full, so a SYN gets no answer."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as sock:
        waiting = [socket.socket() for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(sock.getsockname())
        yield sock.getsockname()[1]
        for client in waiting:
            client.close()


@contextmanager
def running():
    """Return the port of a server and the function that freezes it, and returns how to thaw it."""
    server = embedded()
    server.start()
    pid = Redis(port=server.port).info("server")["process_id"]

    def thaw():
        os.kill(pid, signal.SIGCONT)

    def freeze():
        os.kill(pid, signal.SIGSTOP)
        return thaw

    yield server.port, freeze
    thaw()
    server.stop()


@contextmanager
def frozen():
    """A server that answered a moment ago and is stopped."""
    with running() as (port, freeze):
        freeze()
        yield port


STATES = (refused, silent, dropped, frozen)


@pytest.mark.parametrize("state", STATES)
def test_without_redis_the_call_raises_in_time(fresh, state):
    with state() as port:
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        assert_raises_in_time()


def assert_raises_in_time():
    """Return the error."""
    began = time.monotonic()
    with pytest.raises(BufferUnavailable) as caught:
        track.delay("e")

    assert time.monotonic() - began < DEADLINE_S
    return caught.value


def test_a_redis_that_freezes_between_two_calls_lets_the_second_raise_in_time(fresh):
    """The connection is open already, so only the deadline of the reply applies."""
    with running() as (port, freeze):
        fresh(MM_TASKS_REDIS_URL=f"redis://127.0.0.1:{port}/0")
        track.delay("e")
        freeze()

        assert assert_raises_in_time().maybe_stored == 1


@pytest.mark.parametrize("state", STATES)
def test_without_a_broker_the_call_succeeds_in_time(fresh, redis, redis_url, state):
    """A batch of one is full at once, so each call tries to publish a nudge."""
    with state() as port:
        fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_BATCH_EVENTS_MAX="1")
        fresh(MM_TASKS_BROKER_URL=f"redis://127.0.0.1:{port}/0")
        began = time.monotonic()
        receipt = track.delay("e")

        assert time.monotonic() - began < DEADLINE_S
        assert receipt.accepted
        assert redis.llen("{mm:default}:track:waiting") == 1
