"""Who says what to Redis on which connection, as Redis itself sees it."""

from __future__ import annotations

import re
import socket
import threading
from collections import defaultdict

# An event named after its process, or a Celery message with the process it comes from.
_SAID = re.compile(rb'^\+\S+ \[\d+ ([^\]]+)\] "(?:EVALSHA|LPUSH)".*?(?:pid_|gen)(\d+)')


class Monitor:
    """Listens from `with` to its end."""

    def __init__(self, redis):
        self._where = redis.connection_pool.connection_kwargs
        self._heard = bytearray()

    def __enter__(self):
        self._socket = socket.create_connection((self._where["host"], self._where["port"]), 10)
        self._socket.sendall(b"MONITOR\r\n")

        assert self._socket.recv(5) == b"+OK\r\n"
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()
        return self

    def __exit__(self, *_):
        # What was said before this is heard before it.
        self._socket.sendall(b"QUIT\r\n")
        self._thread.join(30)
        self._socket.close()

    def _listen(self):
        while heard := self._socket.recv(1 << 16):
            self._heard += heard

    def processes(self):
        """Return the process ids heard on each connection."""
        pids = defaultdict(set)
        for line in bytes(self._heard).split(b"\r\n"):
            found = _SAID.match(line)
            if found:
                pids[found[1].decode()].add(int(found[2]))
        return dict(pids)
