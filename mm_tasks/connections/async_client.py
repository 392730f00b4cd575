"""redis-py's asyncio clients: one for each event loop, with a few connections.

A call that finds all connections in use waits as long as Redis answers the calls before it.
Once Redis has been silent for `wait_s`, all waiting calls fail together. A loop that was held up
reads the replies that arrived meanwhile before it decides that there are none.

A connection belongs to the loop that made it. It is closed with its loop, by
`shutdown_asyncgens`, which `asyncio.run`, its `Runner` and all servers call; or by `close`.
If a loop is closed by hand without either, the garbage collector closes them.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import redis.asyncio

from mm_tasks.connections.redis_client import pool_options
from mm_tasks.connections.sentinel import NOT_FOUND, SKIPPED, SentinelGroup, primary_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from mm_tasks.connections.url import Address

# Each call is one short round trip, and one thread packs and reads them all: more connections
# make nothing faster, and opening them all at once takes longer than a call may.
_CONNECTIONS_MAX = 10
# Time for a late loop to read the replies that have arrived.
_GRACE_S = 0.1


class AsyncSentinels(SentinelGroup):
    """The sentinels of one address, for one event loop: one search for all that wait for it."""

    def __init__(self, address: Address, *, timeout_s: float) -> None:
        """Take the time that all of them together may take; open nothing."""
        super().__init__(address, timeout_s=timeout_s)
        self._searching = asyncio.Lock()
        self._primary: tuple[str, int] | None = None
        self._searched_at = 0.0

    async def primary(self) -> tuple[str, int]:
        """Return the primary's host and port; raise redis-py's `ConnectionError` if unknown."""
        began = time.monotonic()
        async with self._searching:
            if self._searched_at < began:
                self._primary = await self._search()
                self._searched_at = time.monotonic()
        if self._primary is None:
            raise redis.ConnectionError(NOT_FOUND)
        return self._primary

    async def _search(self) -> tuple[str, int] | None:
        for options in self.options():
            with suppress(*SKIPPED):
                async with redis.asyncio.Redis(**options) as sentinel:
                    command = ("SENTINEL", "MASTER", self.master_name)
                    reply = await sentinel.execute_command(*command)
                if primary := primary_in(reply):
                    return primary
        return None


class AsyncPrimary(redis.asyncio.Connection):
    """A connection to the primary, which it looks up each time it connects."""

    def __init__(self, *, sentinels: AsyncSentinels, **options: Any) -> None:
        """Take the sentinels, and redis-py's options."""
        super().__init__(**options)
        self._sentinels = sentinels

    async def connect(self) -> None:
        """Connect to the current primary, unless connected."""
        if not self.is_connected:
            self.host, self.port = await self._sentinels.primary()
        await super().connect()


class AsyncPrimaryTLS(AsyncPrimary, redis.asyncio.SSLConnection):
    """The same over TLS."""


class _Client(redis.asyncio.Redis):
    """One loop's client. A command waits for its turn and then for its reply."""

    ending: AsyncGenerator[None]  # closes the client at the end of its loop

    def __init__(self, pool: redis.asyncio.ConnectionPool, wait_s: float) -> None:
        """Own the pool; no command waits longer than this on a silent Redis."""
        super().__init__(connection_pool=pool)
        self.auto_close_connection_pool = True
        self._wait_s = wait_s
        self._turns = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._answered_at = 0.0

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's; raises a plain `RedisError` if nothing was sent."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._take_turn(began)
        try:
            async with _by(self._ends_at(began)):
                answer = await super().execute_command(*args, **options)
            self._answered_at = clock()
        except TimeoutError:
            msg = "no answer in time"
            raise redis.TimeoutError(msg) from None
        finally:
            self._turns.release()
        return answer

    async def finish(self) -> None:
        """Close all connections after the calls under way and those that wait."""
        try:
            for _ in range(_CONNECTIONS_MAX):
                await self._turns.acquire()
        finally:
            # TLS says goodbye, which a silent Redis does not answer.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await self.aclose()

    async def _take_turn(self, began: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with _by(self._ends_at(began)):
                    await self._turns.acquire()
                    return
            except TimeoutError:
                # If Redis answered others meanwhile, this call only waits behind many.
                if clock() >= self._ends_at(began):
                    msg = "no connection became free"
                    raise redis.RedisError(msg) from None

    def _ends_at(self, began: float) -> float:
        return max(began, self._answered_at) + self._wait_s


class AsyncClients:
    """Clients, one for each event loop, that make one attempt for each call within a timeout."""

    def __init__(self, address: Address, *, sentinels_s: float, wait_s: float) -> None:
        """Take the timeout of a call, and the part of it for sentinels; open nothing."""
        self._address = address
        self._sentinels_s = sentinels_s
        self._wait_s = wait_s
        # A loop reads only its own entry, and each step on the dict is atomic: loops in threads
        # need no lock.
        self._clients: dict[asyncio.AbstractEventLoop, _Client] = {}

    def current(self) -> redis.asyncio.Redis:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        if loop in self._clients:
            return self._clients[loop]
        for other in list(self._clients):
            if other.is_closed():
                self._clients.pop(other, None)
        client = _Client(self._pool(), self._wait_s)
        client.ending = self._until_the_end(loop, client)
        # The loop ends each generator that has begun before it closes. This one runs to its
        # `yield` without waiting.
        with suppress(StopIteration):
            client.ending.__anext__().send(None)
        self._clients[loop] = client
        return client

    async def close(self) -> None:
        """Close the running loop's client after its calls; the next call opens a new one."""
        client = self._clients.get(asyncio.get_running_loop())
        if client is not None:
            await client.ending.aclose()

    def _pool(self) -> redis.asyncio.ConnectionPool:
        options = pool_options(self._address, redis.asyncio, (AsyncPrimary, AsyncPrimaryTLS))
        if self._address.master_name:
            options["sentinels"] = AsyncSentinels(self._address, timeout_s=self._sentinels_s)
        # Without timeouts: a call has one deadline for everything, and redis-py's own would
        # not wait for a late loop.
        return redis.asyncio.ConnectionPool(
            max_connections=_CONNECTIONS_MAX,
            socket_connect_timeout=None,
            socket_timeout=None,
            **options,
        )

    async def _until_the_end(
        self, loop: asyncio.AbstractEventLoop, client: _Client
    ) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            # Completely, even if the caller is cancelled.
            await asyncio.shield(client.finish())


@asynccontextmanager
async def _by(deadline_s: float) -> AsyncIterator[None]:
    """Raise `TimeoutError` at this time of the loop, or a little later if the loop was late."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout_at(None) as limit:
        near = loop.call_at(deadline_s - _GRACE_S, lambda: limit.reschedule(loop.time() + _GRACE_S))
        try:
            yield
        finally:
            near.cancel()
