"""Connections to the primary that sentinels name, resolved each time one is made.

redis-py's own classes wait for each sentinel that is away, ten times by default, lose some of
them when two threads ask at once, and report READONLY, a refusal, as a lost connection. Here
the first useful answer is enough, all sentinels share one deadline, and the next search begins
with the last that answered. No connection to a sentinel is kept.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import redis

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mm_tasks.connections.url import Address

# At least this many sentinels share the timeout; the next call starts with the others.
_ASKED_AT_LEAST = 3
SKIPPED = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)
NOT_FOUND = "no sentinel knows where the primary is"


def sentinel_options(address: Address) -> dict[str, Any]:
    """Return redis-py's options for a sentinel, except its host and port."""
    return {
        **address.sentinel_login._asdict(),
        "retry": None,  # redis-py's default is ten attempts
        **({} if address.tls is None else {"ssl": True, **address.tls}),
    }


class SentinelGroup:
    """The sentinels of one address, in the order in which they are asked."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        """Take the time that all of them together may take; open nothing."""
        self.master_name = address.master_name
        self._hosts = address.hosts
        self._timeout_s = timeout_s
        self._next = 0
        each_s = timeout_s / min(len(self._hosts), _ASKED_AT_LEAST)
        self._options = {
            **sentinel_options(address),
            "socket_connect_timeout": each_s,
            "socket_timeout": each_s,
            "protocol": 2,
            "decode_responses": True,
        }

    def options(self) -> Iterator[dict[str, Any]]:
        """Yield the options of each sentinel once, until the time is over."""
        ends_at = time.monotonic() + self._timeout_s
        for _ in self._hosts:
            if time.monotonic() > ends_at:
                return
            at = self._next
            host, port = self._hosts[at % len(self._hosts)]
            yield {**self._options, "host": host, "port": port}
            # The caller continues: later calls do not begin with a useless sentinel either.
            self._next = at + 1


class Sentinels(SentinelGroup):
    """The sentinels of one address, for threads."""

    def primary(self) -> tuple[str, int]:
        """Return the primary's host and port; raise redis-py's `ConnectionError` if unknown."""
        for options in self.options():
            with suppress(*SKIPPED), redis.Redis(**options) as sentinel:
                reply = sentinel.execute_command("SENTINEL", "MASTER", self.master_name)
                if primary := primary_in(reply):
                    return primary
        raise redis.ConnectionError(NOT_FOUND)


class Primary(redis.Connection):
    """A connection to the primary, which it looks up each time it connects."""

    def __init__(self, *, sentinels: Sentinels, **options: Any) -> None:
        """Take the sentinels, and redis-py's options."""
        super().__init__(**options)
        self._sentinels = sentinels

    def connect(self) -> None:
        """Connect to the current primary, unless connected."""
        if self._sock is None:  # redis-py 6.4 has no name for it
            self.host, self.port = self._sentinels.primary()
        super().connect()


class PrimaryTLS(Primary, redis.SSLConnection):
    """The same over TLS."""


def primary_in(reply: list[str]) -> tuple[str, int] | None:
    """Return host and port from a reply to SENTINEL MASTER; None if that sentinel cannot see it."""
    state = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = set(state["flags"].split(","))
    # A sentinel that is cut off from the others continues to name the old primary.
    if "master" not in flags or flags & {"s_down", "o_down"}:
        return None
    return state["ip"], int(state["port"])
