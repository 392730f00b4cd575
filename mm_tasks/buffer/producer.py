"""Append records to a lane, for callers that a web request waits for.

Each `append` is one script. Its errors are those of `mm_tasks.errors`: `BufferFull`
and `BufferUnavailable`.

Commands are packed here and sent by `connections.pool`. What calls did not store is counted in
`refusals`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from mm_tasks import failpoints
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import record
from mm_tasks.buffer.scheduled import STORE
from mm_tasks.buffer.scripts import Script, bulk_strings, with_clock
from mm_tasks.connections.breaker import Away, NotApplied
from mm_tasks.errors import BufferFull, BufferUnavailable
from mm_tasks.events.lanes import QUEUES
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.buffer.batches import BatchLimits
    from mm_tasks.buffer.refusals import Refusals
    from mm_tasks.connections.async_client import LoopPool
    from mm_tasks.connections.pool import Pool
    from mm_tasks.connections.redis_client import RedisClient

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
    """The constant words of a command: their script, their number and their RESP."""

    script: Script
    words: int
    packed: bytes


class Producer:
    """Appends to one lane of one project. Holds a client, no connection of its own."""

    def __init__(  # noqa: PLR0913 - settings that are no part of a batch's limits
        self,
        redis: RedisClient,
        refusals: Refusals,
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
        self._refusals = refusals
        self._project = project
        self._lane = lane
        self._counts = keys.counts
        self._held_bytes_max = held_bytes_max
        self._keys = (of_lane.waiting, keys.counts, keys.fence, keys.nudges, keys.heartbeats)
        self._scheduled_keys = (of_lane.scheduled, keys.counts, keys.fence)
        full = (limits.events_max, limits.bytes_max - BATCH_BRACKETS_BYTES)
        self._args = (lane, held_bytes_max, *full)
        self._head = self.append_head()
        self._silent_head = _packed_head(_APPEND, self._keys, (*self._args, ""))

    def append(self, entries: Sequence[Record]) -> Appended:
        """Store all records whose subject is not fenced, in order, or none.

        Takes at most `APPEND_RECORDS_MAX` records. Raises `BufferFull` above the limit in
        bytes. Raises `BufferUnavailable` when Redis fails; its `maybe_stored` is how many
        records may be stored all the same.
        """
        return self.appended(self.call_append(self._redis.connection_pool, self._head, entries))

    def schedule(self, entries: Sequence[Record], delay_ms: int) -> Appended:
        """Do as `append`; the records become waiting `delay_ms` from now."""
        args = (self._lane, self._held_bytes_max, delay_ms)
        head = _packed_head(STORE, self._scheduled_keys, args)
        return self.appended(self.call_append(self._redis.connection_pool, head, entries))

    async def aappend(self, pool: LoopPool, entries: Sequence[Record]) -> Appended:
        """As `append`, on the connections of the running event loop; `nudge` is always False."""
        command = self._command(self._silent_head, entries)
        failpoints.reach(_APPEND.name, "before")
        try:
            reply = await pool.call(command, _APPEND.text)
        except RedisError as error:
            failed = _failed(error, len(entries))
        else:
            failpoints.reach(_APPEND.name, "after")
            if self._refusals.is_due:
                await self._refusals.astore(pool)
            return self.appended(reply)
        # Raised outside of the handler: the original may quote a record.
        raise failed

    def append_head(self, keys: tuple[str, ...] = (), args: tuple[object, ...] = ()) -> PackedHead:
        """Pack the part of an append before its records, with more keys and arguments."""
        args = (*self._args, QUEUES[self._lane], *args)
        return _packed_head(_APPEND, (*self._keys, *keys), args)

    def call_append(self, pool: Pool, head: PackedHead, entries: Sequence[Record]) -> Any:
        """Store records by the script of a head, and return its reply.

        Raises `BufferUnavailable`, or `BufferFull` when Redis is at its maxmemory.
        """
        command = self._command(head, entries)
        failpoints.reach(head.script.name, "before")
        try:
            reply = pool.call(command, head.script.text)
        except RedisError as error:
            failed = _failed(error, len(entries))
        else:
            failpoints.reach(head.script.name, "after")
            if self._refusals.is_due:
                self._refusals.store(pool)
            return reply
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

    def _command(self, head: PackedHead, entries: Sequence[Record]) -> bytes:
        assert len(entries) <= APPEND_RECORDS_MAX
        records = bulk_strings(record(self._project, *entry) for entry in entries)
        return b"*%d\r\n%b%b" % (head.words + len(entries), head.packed, records)


def _packed_head(script: Script, keys: tuple[str, ...], args: tuple[object, ...]) -> PackedHead:
    keys = with_clock(keys)
    words = ("EVALSHA", script.sha, len(keys), *keys, *args)
    return PackedHead(script, len(words), bulk_strings(str(word).encode() for word in words))


def _failed(error: RedisError, count: int) -> BufferFull | BufferUnavailable:
    if isinstance(error, OutOfMemoryError):
        return BufferFull("Redis is at its maxmemory; nothing was stored")
    if isinstance(error, Away):
        return BufferUnavailable(str(error))
    is_refused = isinstance(error, NotApplied | ResponseError)
    why = str(error) if type(error) is NotApplied else type(error).__name__
    doubt = "" if is_refused else "; it may have"
    return BufferUnavailable(
        f"Redis did not store the event ({why}){doubt}", maybe_stored=0 if is_refused else count
    )
