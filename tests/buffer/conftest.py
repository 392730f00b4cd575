"""Servers of a test's own, for maxmemory, restarts and the AOF."""

import pytest
from redis import Redis

from tests.conftest import embedded


class Server:
    """A server that can be stopped and started, with its data on disk."""

    def __init__(self, **config):
        self._server = embedded(config={"maxmemory-policy": "noeviction", **config})
        self._server.start()
        self.data_dir = self._server.data_dir
        self.client = Redis(port=self.port)

    @property
    def port(self):
        return self._server.port

    def fill(self):
        """Bring it to its maxmemory."""
        self.client.config_set("maxmemory", self.client.info("memory")["used_memory"] // 2)

    def restart(self):
        port = self.port
        self.client.connection_pool.disconnect()
        self._server.stop()
        self._server.start()
        assert self.port == port

    def stop(self):
        self.client.close()
        self._server.stop()


@pytest.fixture
def servers():
    started = []

    def start(**config):
        started.append(Server(**config))
        return started[-1]

    yield start
    for server in started:
        server.stop()


@pytest.fixture
def persistent(servers):
    """A server that writes its AOF at once."""
    return servers(appendonly="yes", appendfsync="always")
