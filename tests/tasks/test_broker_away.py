"""A broker that is away costs a call at most a second, whatever its transport."""

import os
import socket
import struct
import threading
import time
from contextlib import contextmanager

import pytest
from kombu.exceptions import OperationalError

from mm_tasks import runtime, track
from mm_tasks.tasks import publisher
from tests.tasks.test_redis_away import DEADLINE_S, dropped, refused, silent


@contextmanager
def served(answer):
    """Accept each connection and give it to a function; yield the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=answer, args=(connection,), daemon=True).start()

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def closing():
    """As a load balancer without a server behind it does."""
    return served(socket.socket.close)


def method(class_id, method_id, arguments):
    payload = struct.pack(">HH", class_id, method_id) + arguments
    return struct.pack(">BHI", 1, 0, len(payload)) + payload + b"\xce"


def mute_after(steps):
    """Return a broker that falls silent after so many steps of the handshake of AMQP."""
    start = struct.pack(">BBII", 0, 9, 0, 14) + b"PLAIN AMQPLAIN" + struct.pack(">I", 5) + b"en_US"
    tune = struct.pack(">HIH", 100, 131072, 0)
    answers = (method(10, 10, start), method(10, 30, tune), method(10, 41, b"\0"))

    def answer(connection):
        with connection:
            for words in answers[:steps]:
                connection.recv(4096)
                connection.sendall(words)
            while connection.recv(4096):
                pass

    return lambda: served(answer)


@pytest.fixture
def _patient(monkeypatch):
    """How soon Redis answers a busy machine is not the question."""
    monkeypatch.setattr(runtime, "PRODUCER_ANSWER_S", 30.0)


AWAY = {
    "refused": ("amqp", refused),
    "mute": ("amqp", silent),
    "dropped": ("amqp", dropped),
    "closes": ("amqp", closing),
    "mute after its first word": ("amqp", mute_after(1)),
    "mute after the login": ("amqp", mute_after(2)),
    "half open": ("amqp", mute_after(3)),
    "TLS, refused": ("amqps", refused),
    "TLS, mute": ("amqps", silent),
    "TLS, closes": ("amqps", closing),
    "Redis, closes": ("redis", closing),
}


def seconds_of_a_call(redis):
    redis.delete("{mm:default}:nudges")
    began_s = time.monotonic()
    assert track.delay("e").accepted
    return time.monotonic() - began_s


@pytest.mark.usefixtures("_patient")
@pytest.mark.parametrize("away", AWAY)
def test_a_call_that_fills_a_batch_succeeds_in_time(fresh, redis, redis_url, away, caplog):
    """It publishes a flush; kombu waited two seconds for a refused port, and others for ever."""
    scheme, state = AWAY[away]
    with state() as port:
        fresh(MM_TASKS_REDIS_URL=redis_url, MM_TASKS_BATCH_EVENTS_MAX="1")
        fresh(MM_TASKS_BROKER_URL=f"{scheme}://u:p@127.0.0.1:{port}/")
        # The quickest of three: a busy machine may hold one up.
        took_s = min(seconds_of_a_call(redis) for _ in range(3))

    assert took_s < DEADLINE_S
    assert redis.llen("{mm:default}:track:waiting") == 3
    assert "nudge_failed" in caplog.text


def test_several_addresses_are_tried_within_the_same_time(fresh, redis_url, redis):  # noqa: ARG001 - empties it
    with silent() as first, refused() as second, silent() as third:
        ports = (first, second, third)
        fresh(MM_TASKS_REDIS_URL=redis_url)
        fresh(MM_TASKS_BROKER_URL=";".join(f"amqp://127.0.0.1:{port}" for port in ports))
        began_s = time.monotonic()
        with pytest.raises(OperationalError):
            publisher.publish_options()

        assert time.monotonic() - began_s < DEADLINE_S


def test_a_child_without_the_hooks_of_a_fork_has_a_connection_of_its_own(redis_url, fresh, redis):  # noqa: ARG001 - empties it
    """UWSGI forks so: two processes on one socket would receive each other's replies."""
    fresh(MM_TASKS_REDIS_URL=redis_url)
    own = publisher.publish_options()["connection"]
    publisher._publisher.owner = (os.getpid() + 1, *publisher._publisher.owner[1:])  # noqa: SLF001 - as after such a fork
    other = publisher.publish_options()["connection"]

    assert other is not own
    assert own.connected
