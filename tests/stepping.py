"""A Redis whose clock steps when a test says so: libfaketime under an embedded server."""

import os
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
from redis import Redis

from tests.conftest import embedded

LIBRARIES = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))


class SteppingServer:
    """An embedded server, and the offset of its clock from this host's."""

    def __init__(self, directory):
        self._offset = directory / "offset"
        self.offset_s = 0
        self._offset.write_text("+0")
        faked = {
            "LD_PRELOAD": str(LIBRARIES[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        self._server = embedded()
        with _environment(faked):
            self._server.start()
        self.url = f"redis://127.0.0.1:{self._server.port}/0"
        self.client = Redis.from_url(self.url)

    def step(self, by_s):
        """Set the clock forward, or back; return once the server shows it."""
        self.offset_s += by_s
        self._offset.write_text(f"{self.offset_s:+}")
        while abs(self.client.time()[0] - time.time() - self.offset_s) > 2:
            pass

    def stop(self):
        self.client.close()
        self._server.stop()


@contextmanager
def _environment(variables):
    os.environ |= variables
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]


@pytest.fixture(scope="session")
def stepping_server(tmp_path_factory):
    if not LIBRARIES:
        pytest.skip("no libfaketime: apt-get install libfaketime")
    server = SteppingServer(tmp_path_factory.mktemp("clock"))
    yield server
    server.stop()


@pytest.fixture
def stepping(stepping_server):
    stepping_server.client.flushdb()
    stepping_server.step(-stepping_server.offset_s)
    return stepping_server
