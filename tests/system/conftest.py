"""A stack of real processes, and the Redis servers that a test stops, fills or kills."""

import pytest
from redis import Redis

from tests.conftest import embedded
from tests.erasure.conftest import postgresql, postgresql_url
from tests.system.erasing import Erasing
from tests.system.processes import Stack

__all__ = ["postgresql", "postgresql_url"]


@pytest.fixture
def stack(redis, redis_url, tmp_path):  # noqa: ARG001 - `redis` empties the server
    stack = Stack(redis_url, tmp_path)
    yield stack
    stack.end()


@pytest.fixture
def erasing(stack):
    return Erasing(stack)


@pytest.fixture
def servers(stack):
    """Start servers with this configuration, which the stack uses from then on.

    A test may kill a server and start it again on its port. The processes that use it end first.
    """
    started = []

    def start(data_dir=None, **config):
        config = {name.replace("_", "-"): value for name, value in config.items()}
        server = embedded(data_dir=data_dir, config={"maxmemory-policy": "noeviction", **config})
        server.start()
        server.redis = Redis(port=server.port)
        started.append(server)
        stack.env["MM_TASKS_REDIS_URL"] = f"redis://127.0.0.1:{server.port}/0"
        return server

    yield start
    stack.end()
    for server in started:
        server.redis.close()
        if server._process is not None:  # noqa: SLF001 - `stop` refuses one that was killed
            server.stop()


@pytest.fixture
def mortal(servers, tmp_path):
    """The stack's Redis, which loses nothing when it is killed."""
    return servers(tmp_path / "redis", appendonly="yes", appendfsync="always")
