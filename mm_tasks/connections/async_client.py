"""Connections of redis-py's asyncio: a few for each event loop, none idle for long.

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
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import redis.asyncio
from redis.exceptions import NoScriptError, ReadOnlyError, RedisError, ResponseError

from mm_tasks.connections.breaker import NotApplied
from mm_tasks.connections.pool import ANSWERS, CONNECTIONS_MAX, IDLE_MAX_S
from mm_tasks.connections.redis_client import pool_options
from mm_tasks.connections.sentinel import NOT_FOUND, SKIPPED, SentinelGroup, primary_in

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from mm_tasks.connections.breaker import Breaker
    from mm_tasks.connections.url import Address

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


class _Attempt:
    """One command on one connection, and how far it got."""

    def __init__(self, connection: Any, command: bytes, script: str) -> None:
        """Take all of it; send nothing."""
        self.connection = connection
        self.step: Literal["connecting", "loading", "sent"] = "connecting"
        self._command = command
        self._script = script

    async def reply(self) -> Any:
        """Connect, send, and return the reply; raises redis-py's errors."""
        connection = self.connection
        await _ensure_connected(connection)
        try:
            return await self._exchange()
        except NoScriptError:
            self.step = "loading"
        await connection.send_command("SCRIPT", "LOAD", self._script, check_health=False)
        await connection.read_response()
        return await self._exchange()

    async def _exchange(self) -> Any:
        self.step = "sent"
        await self.connection.send_packed_command(self._command, check_health=False)
        return await self.connection.read_response()


class LoopPool:
    """The connections of one loop. A call waits for its turn and then for its reply."""

    ending: AsyncGenerator[None]  # closes the connections at the end of the loop

    def __init__(self, make: Callable[[], Any], wait_s: float, breaker: Breaker) -> None:
        """Take what makes a connection; no call waits longer than this on a silent Redis."""
        self._make = make
        self._wait_s = wait_s
        self._breaker = breaker
        self._turns = asyncio.Semaphore(CONNECTIONS_MAX)
        # With the time of their last use; the last one used is the first one used again.
        self._idle: list[tuple[Any, float]] = []
        self._answered_at = 0.0

    async def call(self, command: bytes, script: str) -> Any:
        """Run a packed EVALSHA of this script and return the reply; raises as `Pool.call`."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._take_turn(began, is_probe=self._breaker.check())
        attempt = _Attempt(await self._free(), command, script)
        try:
            async with _by(self._ends_at(began)):
                reply = await attempt.reply()
        except (RedisError, TimeoutError) as error:
            raise await self._failure(attempt, error) from None
        except BaseException:
            await _abandon(attempt.connection)
            raise
        finally:
            await self._release(attempt.connection)
        self._answered_at = clock()
        self._breaker.answered()
        return reply

    async def finish(self) -> None:
        """Close all connections after the calls under way and those that wait."""
        try:
            for _ in range(CONNECTIONS_MAX):
                await self._turns.acquire()
        finally:
            # TLS says goodbye, which a silent Redis does not answer.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._wait_s):
                    await asyncio.gather(*(held.disconnect() for held, _ in self._idle))

    async def _take_turn(self, began: float, *, is_probe: bool) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with _by(self._ends_at(began)):
                    await self._turns.acquire()
                    break
            except TimeoutError:
                # If Redis answered others meanwhile, this call only waits behind many.
                if clock() >= self._ends_at(began):
                    msg = "no connection became free"
                    raise NotApplied(msg) from None
        try:
            # It may have opened meanwhile: then all that wait fail together.
            _ = is_probe or self._breaker.check()
        except BaseException:
            self._turns.release()
            raise

    async def _free(self) -> Any:
        if not self._idle:
            return self._make()
        connection, used_at = self._idle.pop()
        if asyncio.get_running_loop().time() - used_at > IDLE_MAX_S:
            await _abandon(connection)
        return connection

    async def _release(self, connection: Any) -> None:
        now = asyncio.get_running_loop().time()
        if connection.is_connected:
            self._idle.append((connection, now))
        self._turns.release()
        while self._idle and self._idle[0][1] <= now - IDLE_MAX_S:
            await _abandon(self._idle.pop(0)[0])

    async def _failure(self, attempt: _Attempt, error: Exception) -> RedisError:
        """Return the error to raise, and tell the breaker: see `Pool.call`."""
        is_late = isinstance(error, TimeoutError | redis.TimeoutError)
        is_answer = attempt.step != "connecting" and isinstance(error, ANSWERS)
        if is_answer:
            self._breaker.answered()
        elif is_late or attempt.step == "connecting":
            self._breaker.failed()
        if not is_answer or not isinstance(error, ResponseError):
            await _abandon(attempt.connection)
        if isinstance(error, ReadOnlyError):
            # A primary that became a replica keeps its connections: find the new primary.
            for connection in (attempt.connection, *(held for held, _ in self._idle)):
                await _abandon(connection)
        if attempt.step == "sent" and isinstance(error, ResponseError):
            return error
        if attempt.step == "sent" and not is_answer:
            return redis.TimeoutError("no answer in time") if is_late else redis.ConnectionError()
        return NotApplied(type(error).__name__)

    def _ends_at(self, began: float) -> float:
        return max(began, self._answered_at) + self._wait_s


async def _ensure_connected(connection: Any) -> None:
    """Connect, also when the server closed an idle connection."""
    await connection.connect()
    try:
        is_stale = await _has_data(connection)
    except (redis.ConnectionError, redis.TimeoutError, OSError):
        is_stale = True
    if is_stale:
        await _abandon(connection)
        await connection.connect()


async def _abandon(connection: Any) -> None:
    """Close a connection at once. A goodbye of TLS would outlive the loop."""
    writer = connection._writer  # noqa: SLF001 - redis-py has no name for it
    await connection.disconnect(nowait=True)
    if writer is not None:
        writer.transport.abort()


def _has_data(connection: Any) -> Any:
    # The older name is deprecated where the newer one exists.
    has_new_name = hasattr(connection, "can_read")
    return connection.can_read() if has_new_name else connection.can_read_destructive()


class AsyncClients:
    """Clients, one for each event loop, that make one attempt for each call within a timeout."""

    def __init__(
        self, address: Address, *, sentinels_s: float, wait_s: float, breaker: Breaker
    ) -> None:
        """Take the timeout of a call, and the part of it for sentinels; open nothing."""
        self._address = address
        self._sentinels_s = sentinels_s
        self._wait_s = wait_s
        self._breaker = breaker
        # A loop reads only its own entry, and each step on the dict is atomic: loops in threads
        # need no lock.
        self._clients: dict[asyncio.AbstractEventLoop, LoopPool] = {}

    def current(self) -> LoopPool:
        """Return the connections of the running loop."""
        loop = asyncio.get_running_loop()
        if loop in self._clients:
            return self._clients[loop]
        for other in list(self._clients):
            if other.is_closed():
                self._clients.pop(other, None)
        client = LoopPool(self._make(), self._wait_s, self._breaker)
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

    def _make(self) -> Callable[[], Any]:
        """Return the function that makes a connection, not connected yet."""
        options = pool_options(self._address, redis.asyncio, (AsyncPrimary, AsyncPrimaryTLS))
        if self._address.master_name:
            options["sentinels"] = AsyncSentinels(self._address, timeout_s=self._sentinels_s)
        # Without timeouts: a call has one deadline for everything, and redis-py's own would
        # not wait for a late loop.
        kind = options.pop("connection_class")
        return partial(kind, socket_connect_timeout=None, socket_timeout=None, **options)

    async def _until_the_end(
        self, loop: asyncio.AbstractEventLoop, client: LoopPool
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
