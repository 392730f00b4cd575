"""redis-py's asyncio clients: one for each event loop that asks, with a few connections.

A call that finds them all in use waits in line for as long as Redis answers those before it.
Once Redis has said nothing for a second, all fail, however many there are.

A connection belongs to the loop it was made in. It is closed with its loop, by
`shutdown_asyncgens`, which `asyncio.run`, its `Runner` and all servers call; or by `close`.
A loop that is closed by hand without either leaves that to the garbage collector.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import AsyncGenerator

# Each call is one short round trip, and one thread packs and reads them all: more connections
# make nothing faster, and opening them all at once takes longer than a call may.
_CONNECTIONS_MAX = 10


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

    async def execute_command(self, *args: Any, **options: Any) -> Any:  # noqa: ANN401 - redis-py's
        """As redis-py's; raises a plain `RedisError` where nothing was sent."""
        clock = asyncio.get_running_loop().time
        began = clock()
        await self._turn(began)
        try:
            async with asyncio.timeout_at(self._ends_at(began)):
                answer = await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
            self.answered_at = clock()
        except TimeoutError:
            msg = "no answer in time"
            raise RedisTimeoutError(msg) from None
        finally:
            self.turns.release()
        return answer

    async def _turn(self, began: float) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            try:
                async with asyncio.timeout_at(self._ends_at(began)):
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


class LoopClients:
    """Clients that ask once and wait no longer than told."""

    def __init__(self, url: str, *, connect_s: float, answer_s: float) -> None:
        """Open nothing."""
        self._url = url
        self._connect_s, self._answer_s = connect_s, answer_s
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
        client = _Client.opening(self._pool(), self._connect_s + self._answer_s)
        ending = self._until_the_end(loop, client)
        # The loop hears of a generator that has begun, and ends it before it closes.
        _begin(ending)
        self._clients[loop] = client, ending
        return client

    async def close(self) -> None:
        """Close the connections of the running loop; the next call opens new ones."""
        _, ending = self._clients.get(asyncio.get_running_loop(), (None, None))
        if ending is not None:
            await ending.aclose()

    def _pool(self) -> ConnectionPool:
        return ConnectionPool.from_url(
            self._url,
            max_connections=_CONNECTIONS_MAX,
            socket_connect_timeout=self._connect_s,
            socket_timeout=self._answer_s,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )

    async def _until_the_end(self, loop: AbstractEventLoop, client: Redis) -> AsyncGenerator[None]:
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            await client.aclose()

    def _forget_closed(self) -> None:
        for loop in list(self._clients):
            if loop.is_closed():
                self._clients.pop(loop, None)


def _begin(generator: AsyncGenerator[None]) -> None:
    """Run it to its first `yield`, before which it waits for nothing."""
    try:
        generator.__anext__().send(None)
    except StopIteration:
        return
