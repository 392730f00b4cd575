"""Run the Lua scripts of `lua/` by their digest, loading one only when it is missing.

Every script starts with `lua/common.lua`. Redis forgets scripts when it
restarts; then the call is repeated once after loading, which is safe: a script
that was not found has not run.
"""

from __future__ import annotations

import hashlib
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ReadOnlyError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks import failpoints

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis


class Script:
    """One script of `lua/`, by name. Holds no connection."""

    def __init__(self, name: str) -> None:
        """Read the script; `name` is a file of `lua/` without its ending."""
        self.name = name
        self.text = _text("common") + _text(name)
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def __call__(self, redis: Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:  # noqa: ANN401 - replies differ by script
        """Run it atomically and return its reply; raises what redis-py raises."""
        failpoints.reach(self.name, "before")
        try:
            reply = redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except NoScriptError:
            redis.script_load(self.text)
            reply = redis.execute_command("EVALSHA", self.sha, len(keys), *keys, *args)  # type: ignore[no-untyped-call]
        except ReadOnlyError:
            # A primary that became a replica keeps its connections: look for the new one.
            redis.connection_pool.disconnect(inuse_connections=False)
            raise
        failpoints.reach(self.name, "after")
        return reply

    async def acall(self, redis: AsyncRedis, keys: Sequence[str], args: Sequence[Any]) -> Any:  # noqa: ANN401 - replies differ by script
        """As a call, on a client of the running event loop."""
        failpoints.reach(self.name, "before")
        try:
            reply = await redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            await redis.script_load(self.text)
            reply = await redis.evalsha(self.sha, len(keys), *keys, *args)
        except ReadOnlyError:
            await redis.connection_pool.disconnect(inuse_connections=False)
            raise
        failpoints.reach(self.name, "after")
        return reply

    def command(self, keys: Sequence[str], args: Sequence[object]) -> tuple[int, bytes]:
        """Return how many words a call with these keys and first arguments has, and their RESP."""
        words = ("EVALSHA", self.sha, len(keys), *keys, *args)
        return len(words), b"".join(word(str(text).encode()) for text in words)


class Line:
    """Sends commands that were packed before, for a producer that web requests wait for.

    redis-py packs a call, counts it and borrows a connection in about the time that
    Redis takes to answer it, which each event would pay. Connections are redis-py's
    own, of the kind that the client's pool makes; between calls they are kept here.
    One is used by one thread at a time, and the last one used is the first used again.
    """

    def __init__(self, redis: Redis) -> None:
        """Take the client that says how to connect; open nothing."""
        self._pool = redis.connection_pool
        self._idle: list[Any] = []

    def call(self, script: Script, command: bytes) -> Any:  # noqa: ANN401 - replies differ by script
        """Run a script by its packed command and return the reply; raises what redis-py raises.

        A connection on which anything went wrong is closed, so that no late reply is
        ever taken for another's.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
        failpoints.reach(script.name, "before")
        try:
            _bring_up(connection)
            connection.send_packed_command((command,), check_health=False)
            try:
                reply = connection.read_response()
            except NoScriptError:
                connection.send_command("SCRIPT", "LOAD", script.text)
                connection.read_response()
                connection.send_packed_command((command,), check_health=False)
                reply = connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        finally:
            self._idle.append(connection)
        failpoints.reach(script.name, "after")
        return reply


def _bring_up(connection: Any) -> None:  # noqa: ANN401 - redis-py has no one type of connection
    """Connect, unless it is connected and the server did not close it meanwhile."""
    connection.connect()
    try:
        is_stale = connection.can_read(timeout=0)
    except (RedisConnectionError, RedisTimeoutError, OSError):
        is_stale = True
    if is_stale:
        connection.disconnect()
        connection.connect()


def word(text: bytes) -> bytes:
    """Return one bulk string of RESP, the protocol of Redis."""
    return b"$%d\r\n%b\r\n" % (len(text), text)


@cache
def _text(name: str) -> str:
    return files("mm_tasks").joinpath("lua", f"{name}.lua").read_text(encoding="utf-8")
