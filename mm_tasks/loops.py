"""redis-py's asyncio clients: one connection pool for each event loop that asks.

A connection belongs to the loop it was made in. Those of a loop that is closed are forgotten
when another one comes; `close` ends those of the running loop in an orderly way.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop

# Each call is one short round trip: more connections than this make nothing faster.
_CONNECTIONS_MAX = 50


class LoopClients:
    """Clients that ask once and wait no longer than told."""

    def __init__(self, url: str, *, connect_s: float, answer_s: float) -> None:
        """Open nothing."""
        self._url = url
        self._connect_s, self._answer_s = connect_s, answer_s
        self._clients: WeakKeyDictionary[AbstractEventLoop, Redis] = WeakKeyDictionary()

    def current(self) -> Redis:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            pool = BlockingConnectionPool.from_url(
                self._url,
                max_connections=_CONNECTIONS_MAX,
                timeout=self._answer_s,
                socket_connect_timeout=self._connect_s,
                socket_timeout=self._answer_s,
                socket_keepalive=True,
                retry=Retry(NoBackoff(), 0),
            )
            client = self._clients[loop] = Redis.from_pool(pool)
        return client

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
