"""A socket under a deadline, and the connections that are kept for the next request."""

from __future__ import annotations

import os
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import socket

    from urllib3.util.ssltransport import SSLTransport

    Socket: TypeAlias = socket.socket | SSLTransport

# A proxy may have closed an idle connection; finding out costs an ambiguous answer.
IDLE_MAX_S = 15.0
# Connections without a request that a process keeps.
IDLE_MAX = 20
_LINE_BYTES_MAX = 64 * 1024


class Deadline:
    """An instant of this process's clock. `socket` times each call; this is for all of them."""

    def __init__(self, within_s: float) -> None:
        """Take the seconds from now."""
        self._ends_at = time.monotonic() + within_s

    def left_s(self) -> float:
        """Return the time left; raise `TimeoutError` if none is left."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


class Connection:
    """A connected socket, with the bytes that were received and not read yet.

    Every call has the time left of `deadline`, and raises `TimeoutError`, another `OSError`, or
    `EOFError` if the peer ended the connection.
    """

    def __init__(self, sock: Socket, deadline: Deadline) -> None:
        """Take over the socket."""
        self.sock: Any = sock
        self.deadline = deadline
        self._unread = bytearray()
        self._used_at = time.monotonic()

    @property
    def has_unread(self) -> bool:
        """Say whether bytes were received that nobody read."""
        return bool(self._unread)

    def write(self, data: bytes) -> None:
        """Send all of it."""
        left = memoryview(data)
        while left:
            self.sock.settimeout(self.deadline.left_s())
            left = left[self.sock.send(left) :]

    def read_line(self) -> bytes:
        """Return a line without its end; raise `ValueError` if it is too long."""
        while (end := self._unread.find(b"\n")) < 0:
            if len(self._unread) > _LINE_BYTES_MAX:
                msg = "too long a line"
                raise ValueError(msg)
            self._receive()
        return self._take(end + 1).removesuffix(b"\n").removesuffix(b"\r")

    def read_exactly(self, size: int) -> bytes:
        """Return this many bytes."""
        while len(self._unread) < size:
            self._receive()
        return self._take(size)

    def read_rest(self, size_max: int) -> bytes:
        """Return all bytes up to the end of the connection; raise `ValueError` above the size."""
        while len(self._unread) <= size_max:
            try:
                self._receive()
            except EOFError:
                return self._take(size_max)
        msg = "too long a body"
        raise ValueError(msg)

    def rest(self) -> None:
        """Begin to be idle."""
        self._used_at = time.monotonic()

    def is_quiet(self) -> bool:
        """Say whether it can carry another request: not idle for long, and nothing arrived.

        A byte that arrives before a request belongs to no answer, and an end means that the
        peer is gone. Over TLS a message of the protocol itself does not count.
        """
        if self._unread or time.monotonic() - self._used_at > IDLE_MAX_S:
            return False
        self.sock.settimeout(0)
        try:
            self.sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            return True
        except OSError:
            pass
        return False

    def close(self) -> None:
        """Close the socket; sends nothing."""
        self.sock.close()

    def _receive(self) -> None:
        self.sock.settimeout(self.deadline.left_s())
        data = self.sock.recv(65_536)
        if not data:
            raise EOFError
        self._unread += data

    def _take(self, size: int) -> bytes:
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken


class IdleConnections:
    """The connections of one process that carry no request now. Safe for threads and forks."""

    def __init__(self) -> None:
        """Start without any."""
        self._pid = os.getpid()
        self._idle: deque[Connection] = deque()
        self._inherited: list[deque[Connection]] = []

    def take(self) -> Connection | None:
        """Return one that can carry a request, or None."""
        # Not by a hook: uWSGI forks without Python's.
        if self._pid != os.getpid():
            # Kept: closing would disturb an event loop that is shared with the parent.
            self._inherited.append(self._idle)
            self._pid, self._idle = os.getpid(), deque()
        while True:
            try:
                connection = self._idle.popleft()
            except IndexError:
                return None
            if connection.is_quiet():
                return connection
            connection.close()

    def give(self, connection: Connection) -> None:
        """Keep one for the next request, or close it if there are enough."""
        if len(self._idle) >= IDLE_MAX:
            connection.close()
            return
        connection.rest()
        self._idle.append(connection)

    def close(self) -> None:
        """Close all of this process."""
        while (connection := self.take()) is not None:
            connection.close()
