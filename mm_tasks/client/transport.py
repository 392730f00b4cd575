"""HTTP connections with one deadline for the whole exchange.

`requests` times each read by itself, so a server that drips a byte a second holds a worker for
ever. Here every socket call gets the time left of the exchange. `Deadline.is_connected` records
whether a connection was made: only then can the vendor have stored anything.
"""

from __future__ import annotations

import http.client
import io
import threading
import time
from typing import TYPE_CHECKING, Any

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import socket

# A proxy may have closed an idle connection; finding out costs an ambiguous answer.
IDLE_MAX_S = 15.0
# P6 of docs/architecture.md: admission and first byte lie close together.
CONNECT_TIMEOUT_S = 2.0


class Deadline(threading.local):
    """The current request of this thread: when it must end, and whether it had a connection."""

    ends_at: float = 0
    is_connected: bool = False

    def start(self, timeout_s: float) -> None:
        """Begin a new exchange that ends `timeout_s` from now."""
        self.ends_at = time.monotonic() + timeout_s
        self.is_connected = False

    def left_s(self) -> float:
        """Return the time left; raise `TimeoutError` if none is left."""
        left = self.ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


DEADLINE = Deadline()


class _DeadlineReader(io.RawIOBase):
    """The stream of a socket; every read gets the time left of the exchange."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._stream = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(DEADLINE.left_s())
        return self._stream.readinto(buffer)

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Response(http.client.HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp.close()
        self.fp = io.BufferedReader(_DeadlineReader(sock))


class _HTTPConnection(HTTPConnection):
    """A connection whose every call gets the time left of the exchange."""

    response_class: Any = _Response
    sock: Any
    _used_at: float = 0

    def request(self, *args: Any, **kwargs: Any) -> None:
        if self.sock is None:
            self.connect()
        DEADLINE.is_connected = True
        self.sock.settimeout(DEADLINE.left_s())
        super().request(*args, **kwargs)

    def getresponse(self) -> Any:
        response = super().getresponse()
        self._used_at = time.monotonic()
        return response

    @property
    def is_connected(self) -> bool:
        is_idle = self._used_at and time.monotonic() - self._used_at > IDLE_MAX_S
        return not is_idle and super().is_connected


class _HTTPSConnection(_HTTPConnection, HTTPSConnection):
    """The same over TLS: `super()` of the base is urllib3's HTTPS connection here."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class DeadlineAdapter(HTTPAdapter):
    """A `requests` adapter whose connections obey `DEADLINE`. It never repeats a request."""

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        """Use our pools."""
        super().init_poolmanager(*args, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def proxy_manager_for(self, *args: Any, **kwargs: Any) -> Any:
        """Use our pools behind a proxy too."""
        manager = super().proxy_manager_for(*args, **kwargs)
        manager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}
        return manager
