"""The way of an event into Redis, for calls that a web request waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks import failpoints

if TYPE_CHECKING:
    from redis import Redis

    from mm_tasks.buffer.scripts import Script


class PackedConnection:
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

    def call(self, script: Script, command: bytes) -> Any:
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


def _bring_up(connection: Any) -> None:
    """Connect, unless it is connected and the server did not close it meanwhile."""
    connection.connect()
    try:
        is_stale = connection.can_read(timeout=0)
    except (RedisConnectionError, RedisTimeoutError, OSError):
        is_stale = True
    if is_stale:
        connection.disconnect()
        connection.connect()


# Lua's unpack fails near 8 000 values.
APPEND_RECORDS_MAX = 1000


class Record(NamedTuple):
    """What `append` takes: the bytes to send and the ids the fence looks at."""

    body: bytes
    user_id: str | None
    anonymous_id: str | None


class Appended(NamedTuple):
    """Positions of refused entries (their subject is fenced), and whether to nudge a flush."""

    suppressed: frozenset[int]
    nudge: bool
