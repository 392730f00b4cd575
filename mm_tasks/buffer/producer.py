"""Append records to a lane, for callers that a web request waits for.

Each `append` is one script. Its errors are those of `mm_tasks.errors`: `BufferFull`
and `BufferUnavailable`.

Commands are packed here and not by redis-py, which packs a call, counts it and borrows
a connection in about the time that Redis takes to answer. Each event would pay that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks import failpoints
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import record
from mm_tasks.buffer.scripts import Script, with_clock
from mm_tasks.errors import BufferFull, BufferUnavailable
from mm_tasks.events.lanes import QUEUES
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from mm_tasks.buffer.batches import BatchLimits

# Lua's unpack fails near 8 000 values.
APPEND_RECORDS_MAX = 1000

_APPEND = Script("append")


class Record(NamedTuple):
    """The bytes to send and the ids that the fence checks."""

    body: bytes
    user_id: str | None
    anonymous_id: str | None


class Appended(NamedTuple):
    """Positions of the records that the fence refused, and whether to nudge a flush."""

    suppressed: frozenset[int]
    nudge: bool


class PackedHead(NamedTuple):
    """The constant words of an append command: their number and their RESP."""

    words: int
    packed: bytes


class PackedConnection:
    """Sends commands that are packed already, on connections of its own.

    They are redis-py's connections, made like those of the client's pool. Between calls
    they are kept here. One thread at a time uses a connection; the last one used is the
    first one used again.
    """

    def __init__(self, redis: Redis) -> None:
        """Take the client whose pool configures the connections; open nothing."""
        self._pool = redis.connection_pool
        self._idle: list[Any] = []

    def call(self, script: Script, command: bytes) -> Any:
        """Run a script by its packed command and return the reply; raises redis-py's errors.

        A connection is closed after any error, so that a late reply is never taken for
        the reply to another command.
        """
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._pool.connection_class(**self._pool.connection_kwargs)
        failpoints.reach(script.name, "before")
        try:
            _ensure_connected(connection)
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


class Producer:
    """Appends to one lane of one project. Holds a client and its idle connections."""

    def __init__(
        self,
        redis: Redis,
        project: str,
        lane: str,
        limits: BatchLimits,
        *,
        held_bytes_max: int,
    ) -> None:
        """Take everything as arguments; read and open nothing."""
        keys = ProjectKeys(project)
        of_lane = keys.lane(lane)
        self._redis = redis
        self._connection = PackedConnection(redis)
        self._project = project
        self._lane = lane
        self._counts = keys.counts
        self._held_bytes_max = held_bytes_max
        self._keys = (of_lane.waiting, keys.counts, keys.fence, keys.nudges, keys.heartbeats)
        full = (limits.events_max, limits.bytes_max - BATCH_BRACKETS_BYTES)
        self._args = (lane, held_bytes_max, *full)
        self._kind = QUEUES[lane]
        self._head = self.append_head()

    def append(self, entries: Sequence[Record]) -> Appended:
        """Store all records whose subject is not fenced, in order, or none.

        Takes at most `APPEND_RECORDS_MAX` records. Raises `BufferFull` above the limit in
        bytes. Raises `BufferUnavailable` when Redis fails; its `maybe_stored` is how many
        records may be stored all the same.
        """
        return self.appended(self.call_append(self._connection, self._head, entries))

    async def aappend(self, redis: AsyncRedis, entries: Sequence[Record]) -> Appended:
        """As `append`, on a client of the running event loop. Its `nudge` is always False."""
        args = (*self._args, "", *self._encode(entries))
        try:
            reply = await _APPEND.acall(redis, self._keys, args)
        except RedisError as error:
            failed = _failed(error, len(entries))
        else:
            return self.appended(reply)
        # Raised outside of the handler: the original may quote a record.
        raise failed

    def append_head(self, keys: tuple[str, ...] = (), args: tuple[object, ...] = ()) -> PackedHead:
        """Pack the part of an append before its records, with more keys and arguments."""
        keys = with_clock((*self._keys, *keys))
        words = ("EVALSHA", _APPEND.sha, len(keys), *keys, *self._args, self._kind, *args)
        packed = _resp_bulk_strings(str(word).encode() for word in words)
        return PackedHead(len(words), packed)

    def call_append(
        self, connection: PackedConnection, head: PackedHead, entries: Sequence[Record]
    ) -> Any:
        """Run `append.lua` with a head of `append_head` and return its reply.

        Raises `BufferUnavailable`, or `BufferFull` when Redis is at its maxmemory.
        """
        packed = _resp_bulk_strings(self._encode(entries))
        command = b"*%d\r\n%b%b" % (head.words + len(entries), head.packed, packed)
        try:
            return connection.call(_APPEND, command)
        except RedisError as error:
            failed = _failed(error, len(entries))
        # Raised outside of the handler: the original may quote a record.
        raise failed

    def appended(self, reply: Any) -> Appended:
        """Return the result in a reply of `append.lua`; raises `BufferFull`."""
        if type(reply) is int:
            return Appended(frozenset(), reply == 1)
        if reply[0] >= 0:
            return Appended(frozenset(i - 1 for i in reply[1:]), reply[0] == 1)
        msg = (
            f"the buffer holds {reply[1]} bytes; MM_TASKS_BUFFER_BYTES_MAX is "
            f"{self._held_bytes_max}. Nothing was stored: slow down or raise it"
        )
        raise BufferFull(msg)

    def count_dropped_fields(self, n: int) -> None:
        """Count fields dropped from events because the vendor would reject them."""
        self._redis.hincrby(self._counts, f"{self._lane}:left_out", n)

    def _encode(self, entries: Sequence[Record]) -> list[bytes]:
        assert len(entries) <= APPEND_RECORDS_MAX
        return [record(self._project, *entry) for entry in entries]


def _resp_bulk_strings(words: Iterable[bytes]) -> bytes:
    """Return words as bulk strings of RESP, the protocol of Redis."""
    return b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def _ensure_connected(connection: Any) -> None:
    """Connect, also when the server closed an idle connection."""
    connection.connect()
    try:
        is_stale = connection.can_read(timeout=0)
    except (RedisConnectionError, RedisTimeoutError, OSError):
        is_stale = True
    if is_stale:
        connection.disconnect()
        connection.connect()


def _failed(error: RedisError, count: int) -> BufferFull | BufferUnavailable:
    if isinstance(error, OutOfMemoryError):
        return BufferFull("Redis is at its maxmemory; nothing was stored")
    # Only a broken connection leaves doubt; an error that Redis answered stored nothing.
    is_doubtful = isinstance(error, RedisConnectionError | RedisTimeoutError)
    return BufferUnavailable(
        f"Redis did not store the event ({type(error).__name__})",
        maybe_stored=count if is_doubtful else 0,
    )
