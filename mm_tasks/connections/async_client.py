"""redis-py's asyncio clients: one for each event loop that asks, with a few connections.

A call that finds them all in use waits in line for as long as Redis answers those before it.
Once Redis has said nothing for a second, all fail, however many there are. A loop that was
held up itself reads what came meanwhile before it decides that nothing did.

A connection belongs to the loop it was made in. It is closed with its loop, by
`shutdown_asyncgens`, which `asyncio.run`, its `Runner` and all servers call; or by `close`.
A loop that is closed by hand without either leaves that to the garbage collector.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

from redis.asyncio import ConnectionPool, Redis
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks.connections import redis_client

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import AsyncGenerator, AsyncIterator

    from mm_tasks.connections.url import Address

# Each call is one short round trip, and one thread packs and reads them all: more connections
# make nothing faster, and opening them all at once takes longer than a call may.
_CONNECTIONS_MAX = 10
# For a loop that comes late to its own deadline: what it takes to read what has arrived.
_GRACE_S = 0.1


class _Client(Redis):
    """One loop's client. A command waits for its turn and then for its answer."""

    @classmethod
    def opening(cls, pool: ConnectionPool, wait_s: float) -> _Client:
        """Return a client that owns the pool; no command waits longer than this on a mute Redis."""
        client = cls(connection_pool=pool)
        client.auto_close_connection_pool = True
        client.wait_s = wait_s
        client.turns = asyncio.Semaphore(_CONNECTIONS_MAX)
        client.answered_at = 0.0
        return client

    wait_s: float
    turns: asyncio.Semaphore
    answered_at: float

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """As redis-py's; raises a plain `RedisError` where nothing was sent."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._turn(began)
        try:
            async with _by(self._ends_at(began)):
                answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            self.answered_at = clock()
        except TimeoutError:
            msg = "no answer in time"
            raise RedisTimeoutError(msg) from None
        finally:
            self.turns.release()
        return answer

    async def ended(self) -> None:
        """Close all connections, once the calls under way and in line have ended."""
        try:
            for _ in range(_CONNECTIONS_MAX):
                await self.turns.acquire()
        finally:
            # TLS says goodbye, which a mute Redis does not answer.
            with suppress(TimeoutError):
                async with asyncio.timeout(self.wait_s):
                    await self.aclose()

    async def _turn(self, began: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with _by(self._ends_at(began)):
                    await self.turns.acquire()
            except TimeoutError:
                # Others were answered meanwhile: it is only a long line.
                if clock() >= self._ends_at(began):
                    msg = "no connection became free"
                    raise RedisError(msg) from None
            else:
                return

    def _ends_at(self, began: float) -> float:
        return max(began, self.answered_at) + self.wait_s


class AsyncClients:
    """Clients that ask once and wait no longer than told."""

    def __init__(self, address: Address, *, sentinels_s: float, wait_s: float) -> None:
        """Take how long a call waits, and how much of it for sentinels; open nothing."""
        self._address = address
        self._sentinels_s = sentinels_s
        self._wait_s = wait_s
        # By loop, with what closes the client at the end of it. A loop sees only its own entry,
        # and each step on the dict is atomic, so that loops in several threads need no lock.
        self._clients: dict[AbstractEventLoop, tuple[Redis, AsyncGenerator[None]]] = {}

    def current(self) -> Redis:
        """Return the client of the running loop."""
        loop = asyncio.get_running_loop()
        found = self._clients.get(loop)
        if found is not None:
            return found[0]
        self._forget_closed()
        client = _Client.opening(self._pool(), self._wait_s)
        ending = self._until_the_end(loop, client)
        # The loop hears of a generator that has begun, and ends it before it closes.
        _begin(ending)
        self._clients[loop] = client, ending
        return client

    async def close(self) -> None:
        """Let the running loop's calls end, then close what they used; the next call opens anew."""
        _, ending = self._clients.get(asyncio.get_running_loop(), (None, None))
        if ending is not None:
            await ending.aclose()

    def _pool(self) -> ConnectionPool:
        # One deadline for all of a call; redis-py's own would each forget a late loop.
        return redis_client.loop_pool(
            self._address, connections_max=_CONNECTIONS_MAX, sentinels_s=self._sentinels_s
        )

    async def _until_the_end(
        self, loop: AbstractEventLoop, client: _Client
    ) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            # All the way, even if whoever asked for it is cancelled.
            await asyncio.shield(client.ended())

    def _forget_closed(self) -> None:
        for loop in list(self._clients):
            if loop.is_closed():
                self._clients.pop(loop, None)


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


def _begin(generator: AsyncGenerator[None]) -> None:
    """Run it to its first `yield`, before which it waits for nothing."""
    try:
        generator.__anext__().send(None)
    except StopIteration:
        return
