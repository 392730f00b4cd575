"""Ask sentinels for the primary, each time a connection is made: for redis-py's Sentinel pools.

redis-py's own class would wait for each sentinel that is away, ten times by default, and loses
some of them when two threads ask at once. Here one answer is enough, asking has one deadline,
and the last that answered is asked first. No connection to a sentinel is kept.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import redis
import redis.asyncio
from redis import sentinel
from redis.asyncio import sentinel as asyncio_sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

# So many are asked in the time that there is; a later call begins with those left over.
_ASKED_AT_LEAST = 3
_SKIPPED = (RedisConnectionError, RedisTimeoutError, ResponseError)
_NOBODY = "no sentinel knows where the primary is"


class _SentinelPool:
    def __init__(
        self, hosts: tuple[tuple[str, int], ...], options: Mapping[str, Any], *, whole_s: float
    ) -> None:
        """Take where they are, what redis-py is told of each, and how long all of them may take."""
        self._hosts = hosts
        self._whole_s = whole_s
        self._next = 0
        timeout_s = whole_s / min(len(hosts), _ASKED_AT_LEAST)
        self._options = {
            **options,
            "socket_connect_timeout": timeout_s,
            "socket_timeout": timeout_s,
            "protocol": 2,
            "decode_responses": True,
        }

    def _asked(self) -> Iterator[tuple[str, int]]:
        """Yield each once, until the caller is content or the time is over."""
        ends_at = time.monotonic() + self._whole_s
        for _ in self._hosts:
            if time.monotonic() > ends_at:
                return
            at = self._next
            yield self._hosts[at % len(self._hosts)]
            # That one was of no use: nor is it the first that others ask.
            self._next = at + 1


class Sentinels(_SentinelPool):
    """The sentinels of one address."""

    def discover_master(self, name: str) -> tuple[str, int]:
        """Return the primary's host and port; raises redis-py's `MasterNotFoundError`."""
        for host, port in self._asked():
            retry = Retry(NoBackoff(), 0)
            try:
                with redis.Redis(host, port, retry=retry, **self._options) as one:
                    reply = one.execute_command("SENTINEL", "MASTER", name)
            except _SKIPPED:
                continue
            if found := _primary(reply):
                return found
        raise sentinel.MasterNotFoundError(_NOBODY)


class LoopSentinels(_SentinelPool):
    """The sentinels of one address, for one event loop: asked once for all who wait for it."""

    def __init__(
        self, hosts: tuple[tuple[str, int], ...], options: Mapping[str, Any], *, whole_s: float
    ) -> None:
        """As `Sentinels`."""
        super().__init__(hosts, options, whole_s=whole_s)
        self._asking = asyncio.Lock()
        self._found: tuple[str, int] | None = None
        self._found_at = 0.0

    async def discover_master(self, name: str) -> tuple[str, int]:
        """Return the primary's host and port; raises redis-py's `MasterNotFoundError`."""
        came_at = time.monotonic()
        async with self._asking:
            if self._found_at < came_at:
                self._found = await self._ask(name)
                self._found_at = time.monotonic()
        if self._found is None:
            raise asyncio_sentinel.MasterNotFoundError(_NOBODY)
        return self._found

    async def _ask(self, name: str) -> tuple[str, int] | None:
        for host, port in self._asked():
            retry = AsyncRetry(NoBackoff(), 0)
            try:
                async with redis.asyncio.Redis(
                    host=host, port=port, retry=retry, **self._options
                ) as one:
                    reply = await one.execute_command("SENTINEL", "MASTER", name)  # type: ignore[no-untyped-call]
            except _SKIPPED:
                continue
            if found := _primary(reply):
                return found
        return None


# redis-py's own make READONLY, which is a refusal, a lost connection: maybe stored.
class Primary(sentinel.SentinelManagedConnection):
    """A connection to the primary, whom it looks up each time it is made."""

    read_response = redis.Connection.read_response


class PrimaryTLS(sentinel.SentinelManagedSSLConnection):
    """The same over TLS."""

    read_response = redis.Connection.read_response


class LoopPrimary(asyncio_sentinel.SentinelManagedConnection):
    """The same, of an event loop."""

    read_response = redis.asyncio.Connection.read_response  # type: ignore[assignment]


class LoopPrimaryTLS(asyncio_sentinel.SentinelManagedSSLConnection):
    """The same, of an event loop, over TLS."""

    read_response = redis.asyncio.Connection.read_response  # type: ignore[assignment]


def _primary(reply: list[str]) -> tuple[str, int] | None:
    """Return where the primary is, by the word of a sentinel that can see it."""
    state = dict(zip(reply[::2], reply[1::2], strict=False))
    flags = set(state["flags"].split(","))
    # One that is cut off from the others goes on to name the old one.
    if "master" not in flags or flags & {"s_down", "o_down"}:
        return None
    return state["ip"], int(state["port"])
