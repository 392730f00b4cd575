"""Where records wait in Redis: append, claim, begin, ack, release, narrow, bury.

Each method is one script, so an event is at every moment in exactly one place
and the counts move with it. `append` is for producers and maps what Redis says
to our errors; the rest is for workers, and raises what redis-py raises: a
worker that cannot reach Redis has nothing to decide.

Not here: when to claim (`delivery`), the rate (`limiter`), HTTP (`client`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import uuid_utils
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from mm_tasks.buffer import histograms
from mm_tasks.buffer.attempt import Admitted, Rejection
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import APPEND_RECORDS_MAX, Appended, PackedConnection, Record
from mm_tasks.buffer.records import HEADER_BYTES, record
from mm_tasks.buffer.scripts import Script, resp_bulk_string
from mm_tasks.errors import BufferFull, BufferUnavailable
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis
    from redis.asyncio import Redis as AsyncRedis

    from mm_tasks.buffer.attempt import RequestStats

_NOBODY: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one request may carry, and for how long a part-full one waits for more."""

    events_max: int
    bytes_max: int
    linger_ms: int


class Buffer:
    """One lane of one project. Holds a client, no state of its own."""

    def __init__(  # noqa: PLR0913 - settings that are no part of a batch's limits
        self,
        redis: Redis,
        project: str,
        lane: str,
        limits: BatchLimits,
        *,
        held_bytes_max: int,
        nudge_ms: int = 1000,
    ) -> None:
        """Take everything as arguments; nothing is read or opened here."""
        self._redis = redis
        self._keys = ProjectKeys(project).lane(lane)
        self._project = ProjectKeys(project)
        self._limits = limits
        self._held_bytes_max = held_bytes_max
        self._line = PackedConnection(redis)
        self._nudge_ms = nudge_ms
        self.lane = lane
        self._append_head = self.append_head()

    def append(self, entries: Sequence[Record]) -> Appended:
        """Store all entries whose subject is not fenced, in order, or none.

        Raises `BufferFull` above the cap in bytes, and `BufferUnavailable`,
        after which the entries may be stored all the same. At most
        `APPEND_RECORDS_MAX` entries at once.
        """
        return self.appended(self.call_append(self._line, self._append_head, entries))

    def call_append(
        self, line: PackedConnection, head: tuple[int, bytes], entries: Sequence[Record]
    ) -> Any:
        """Run `append.lua` on a line, its words before the records packed, and return the reply.

        Raises `BufferUnavailable`, or `BufferFull` at Redis's own limit.
        """
        assert len(entries) <= APPEND_RECORDS_MAX
        words, packed = head
        name = self._project.project
        records = [resp_bulk_string(record(name, *entry)) for entry in entries]
        command = b"*%d\r\n%b%b" % (words + len(records), packed, b"".join(records))
        try:
            return line.call(_APPEND, command)
        except RedisError as error:
            failed = _failed(error, len(entries))
        # Raised outside of the handler: the original may quote a record.
        raise failed

    async def aappend(self, redis: AsyncRedis, entries: Sequence[Record]) -> Appended:
        """As `append`, on a client of the running event loop."""
        assert len(entries) <= APPEND_RECORDS_MAX
        records = [record(self._project.project, *entry) for entry in entries]
        keys, args = self._append_words()
        try:
            reply = await _APPEND.acall(redis, keys, (*args, *records))
        except RedisError as error:
            failed = _failed(error, len(entries))
        else:
            return self.appended(reply)
        raise failed

    def appended(self, reply: Any) -> Appended:
        """Return what a reply of `append.lua` says; raise `BufferFull` where it says that."""
        if type(reply) is int:
            return Appended(_NOBODY, reply == 1)
        if reply[0] >= 0:
            return Appended(frozenset(i - 1 for i in reply[1:]), reply[0] == 1)
        msg = (
            f"the buffer holds {reply[1]} bytes; MM_TASKS_BUFFER_BYTES_MAX is "
            f"{self._held_bytes_max}. Nothing was stored: slow down or raise it"
        )
        raise BufferFull(msg)

    def append_head(
        self, keys: tuple[str, ...] = (), args: tuple[object, ...] = ()
    ) -> tuple[int, bytes]:
        """Return what comes before the records of an append, with more keys and arguments."""
        ours, first = self._append_words()
        return _APPEND.command((*ours, *keys), (*first, *args))

    def _append_words(self) -> tuple[tuple[str, ...], tuple[str | int, ...]]:
        """Return what all appends have in common: keys and first arguments."""
        keys, project, limits = self._keys, self._project, self._limits
        args = (
            self.lane,
            self._held_bytes_max,
            limits.events_max,
            limits.bytes_max - BATCH_BRACKETS_BYTES,
            self._nudge_ms,
        )
        return (keys.waiting, project.counts, project.fence, keys.nudge), args

    def count_dropped_fields(self, n: int) -> None:
        """Count fields that events went without, as the vendor would refuse them."""
        _LEFT_OUT(self._redis, (self._project.counts,), (self.lane, n))

    def look(self, *, late_ms: int, claimed_max: int, linger: bool = True) -> str:
        """Return what a flush should do next: see `batch_readiness.lua`."""
        limits, keys, project = self._limits, self._keys, self._project
        places = (keys.waiting, keys.claimed, project.counts)
        holds = (project.pause, keys.throttle, keys.outage, project.fences)
        reply = _LOOK(
            self._redis,
            (*places, *holds),
            (
                self.lane,
                limits.events_max,
                limits.bytes_max - BATCH_BRACKETS_BYTES,
                limits.linger_ms if linger else 0,
                late_ms * 1000,
                claimed_max,
            ),
        )
        return str(reply, "ascii")

    def claim(self, *, slot_us: int | None, found_again_ms: int, linger: bool = True) -> str | None:
        """Make a batch of the oldest records for this slot; None when none is ready.

        Nor is one while not all fences are loaded.
        """
        batch_id = new_id()
        limits, keys, project = self._limits, self._keys, self._project
        taken = _CLAIM(
            self._redis,
            (
                keys.waiting,
                keys.records(batch_id),
                keys.batch(batch_id),
                keys.claimed,
                keys.leases,
                project.counts,
                project.fence,
                project.fences,
                project.caught,
            ),
            (
                self.lane,
                batch_id,
                limits.events_max,
                limits.bytes_max,
                BATCH_BRACKETS_BYTES,
                limits.linger_ms if linger else 0,
                "" if slot_us is None else slot_us,
                found_again_ms,
            ),
        )
        return batch_id if taken else None

    def due(self, limit: int, *, everything: bool = False) -> list[str]:
        """Return ids of batches to look at, most overdue first; with `everything`, of any."""
        ids = _DUE(self._redis, (self._keys.leases,), (limit, int(everything)))
        return [str(batch_id, "ascii") for batch_id in ids]

    def adopt(self, batch_id: str, *, slot_us: int | None, found_again_ms: int) -> bool:
        """Give a slot to a batch nobody is sending; False when it is gone or being sent."""
        keys = self._keys
        args = (batch_id, "" if slot_us is None else slot_us, found_again_ms)
        return bool(_ADOPT(self._redis, (keys.batch(batch_id), keys.claimed, keys.leases), args))

    def begin(
        self, batch_id: str, *, slot: str, slot_valid_ms: int, lease_ms: int
    ) -> Admitted | Rejection:
        """Admit one attempt, or say why not. `slot` is as in `batch_begin.lua`."""
        token, asked_at_s = new_id(), time.monotonic()
        keys, project = self._keys, self._project
        verdict, *rest = _BEGIN(
            self._redis,
            (
                *self._places(batch_id),
                project.fence,
                project.pause,
                keys.throttle,
                keys.outage,
                project.fences,
                project.caught,
            ),
            (self.lane, batch_id, token, slot, slot_valid_ms * 1000, lease_ms),
        )
        if verdict == b"admitted":
            attempt, in_a_row, generation, left, paused, is_alone, *records = rest
            bodies = [record[HEADER_BYTES:] for record in records]
            return Admitted(
                token,
                attempt,
                in_a_row,
                int(generation),
                bodies,
                len(bodies),
                left,
                paused=str(paused, "ascii"),
                is_alone=bool(is_alone),
                asked_at_s=asked_at_s,
            )
        reason: Any = str(verdict, "ascii")
        return Rejection(reason, rest[0] / 1e6 if rest else 0)

    def lapse(self, batch_id: str, *, lease_ms: int) -> Admitted | None:
        """Take over a batch whose lease ran out while it was sent; None if it did not."""
        token, keys = new_id(), self._keys
        found = _LAPSE(
            self._redis, (keys.batch(batch_id), keys.leases), (batch_id, token, lease_ms)
        )
        if not found:
            return None
        attempt, in_a_row, generation, sent = map(int, found)
        return Admitted(token, attempt, in_a_row, generation, [], sent)

    def ack(
        self,
        batch_id: str,
        generation: int,
        *,
        token: str = "",
        count_differs: bool = False,
        exchange: RequestStats | None = None,
    ) -> int:
        """Forget what was delivered, whoever holds the batch; return how many events that were.

        `generation` and `token` are the attempt's. 0 when the batch, or that part of it, was gone.
        """
        keys, limits = self._keys, self._limits
        also = (
            keys.failures,
            keys.refusals,
            keys.orphaned_request,
            self._project.histogram_counters,
        )
        histogram_counters = histograms.of_delivery(
            self.lane, exchange, limits.events_max, limits.bytes_max
        )
        args = (
            self.lane,
            batch_id,
            generation,
            int(count_differs),
            token,
            histograms.AGES,
            *histogram_counters,
        )
        return int(_ACK(self._redis, (*self._places(batch_id), *also), args))

    def release(  # noqa: PLR0913 - one for each thing the script records
        self,
        batch_id: str,
        token: str,
        *,
        wait_ms: int,
        grace_ms: int,
        outcome: str = "",
        ambiguous: str = "",
        exchange: RequestStats | None = None,
    ) -> bool:
        """Give a batch back until `wait_ms` from now; False when the token is old.

        An empty token gives back a batch that was never begun.
        """
        keys = (*self._places(batch_id)[1:], self._project.histogram_counters)
        args = (self.lane, batch_id, token, wait_ms, grace_ms, outcome, ambiguous)
        histogram_counters = histograms.of_request(self.lane, exchange)
        return bool(_RELEASE(self._redis, keys, (*args, *histogram_counters)))

    def narrow(
        self,
        batch_id: str,
        token: str,
        *,
        why: str,
        isolation_max: int,
        exchange: RequestStats | None = None,
    ) -> Literal["old", "narrowed", "buried", "systematic"]:
        """Send less of a refused batch next, or bury the one event: see `batch_bisect.lua`."""
        assert "\n" not in why
        keys, project = self._keys, self._project
        also = (
            keys.failures,
            project.dead,
            project.dead_at,
            keys.refusals,
            project.histogram_counters,
        )
        args = (self.lane, batch_id, token, why, isolation_max)
        histogram_counters = histograms.of_request(self.lane, exchange)
        reply: Any = _NARROW(
            self._redis, (*self._places(batch_id), *also), (*args, *histogram_counters)
        )
        return str(reply, "ascii")  # type: ignore[return-value] # one of the script's words

    def single_out(self, batch_id: str) -> bool:
        """Note that other batches pass where this one was refused; False when it is gone."""
        return bool(_SINGLE_OUT(self._redis, (self._keys.batch(batch_id),), ()))

    def bury(  # noqa: PLR0913 - one for each thing the script records
        self,
        batch_id: str,
        token: str,
        *,
        why: str,
        outcome: str,
        ambiguous: str = "",
        exchange: RequestStats | None = None,
    ) -> int:
        """Make dead letters of what was sent of a batch; `why` is one line of JSON."""
        assert "\n" not in why
        also = (self._project.dead, self._project.dead_at, self._project.histogram_counters)
        args = (self.lane, batch_id, token, outcome, ambiguous, why)
        histogram_counters = histograms.of_request(self.lane, exchange)
        return int(
            _BURY(self._redis, (*self._places(batch_id), *also), (*args, *histogram_counters))
        )

    def _places(self, batch_id: str) -> tuple[str, str, str, str, str]:
        keys = self._keys
        return (
            keys.records(batch_id),
            keys.batch(batch_id),
            keys.claimed,
            keys.leases,
            self._project.counts,
        )


def new_id() -> str:
    """Return a new id for a batch or an attempt (UUIDv7, RFC 9562)."""
    return str(uuid_utils.uuid7())


def _failed(error: RedisError, count: int) -> BufferFull | BufferUnavailable:
    if isinstance(error, OutOfMemoryError):
        return BufferFull("Redis is at its maxmemory; nothing was stored")
    # Only what broke on the way leaves doubt; an error that Redis answered stored nothing.
    is_doubtful = isinstance(error, RedisConnectionError | RedisTimeoutError)
    return BufferUnavailable(
        f"Redis did not store the event ({type(error).__name__})",
        maybe_stored=count if is_doubtful else 0,
    )


_APPEND, _LOOK, _CLAIM, _DUE, _ADOPT = map(
    Script, ("append", "batch_readiness", "batch_claim", "batch_due", "batch_assign_slot")
)
_BEGIN, _LAPSE, _ACK, _RELEASE = map(
    Script, ("batch_begin", "batch_take_over", "batch_ack", "batch_release")
)
_NARROW, _SINGLE_OUT, _BURY = map(Script, ("batch_bisect", "batch_isolate", "batch_bury"))
_LEFT_OUT = Script("count_dropped")
