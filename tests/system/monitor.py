"""The commands that Redis receives on each connection, as Redis itself sees them."""

import re
import socket
import threading
from collections import defaultdict

# An event named after its process, or a Celery message with the process it comes from.
_COMMAND = re.compile(rb'^\+\S+ \[\d+ ([^\]]+)\] "(?:EVALSHA|LPUSH)".*?(?:pid_|gen)(\d+)')


class Monitor:
    """Records commands from the start of `with` to its end."""

    def __init__(self, redis):
        kwargs = redis.connection_pool.connection_kwargs
        self._address = kwargs["host"], kwargs["port"]
        self._received = bytearray()

    def __enter__(self):
        self._socket = socket.create_connection(self._address, 10)
        self._socket.sendall(b"MONITOR\r\n")

        assert self._socket.recv(5) == b"+OK\r\n"
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._receive)
        self._thread.start()
        return self

    def __exit__(self, *_):
        # Redis reports all earlier commands before it answers this one.
        self._socket.sendall(b"QUIT\r\n")
        self._thread.join(30)
        self._socket.close()

    def _receive(self):
        while received := self._socket.recv(1 << 16):
            self._received += received

    def processes(self):
        """Return the process ids seen on each connection."""
        pids = defaultdict(set)
        for line in bytes(self._received).split(b"\r\n"):
            if command := _COMMAND.match(line):
                pids[command[1].decode()].add(int(command[2]))
        return dict(pids)

    def unshared(self):
        """Return the process ids, having seen no two of them on one connection."""
        pids = self.processes()

        assert all(len(of_one) == 1 for of_one in pids.values()), pids
        return set.union(*pids.values())
