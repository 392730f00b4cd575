"""The batches of a lane: claim, begin, ack, release, bisect, bury.

Each method that changes anything is one script. So an event is in exactly one place at every
moment, and the counts move with it. The methods raise redis-py's errors: a worker without
Redis has nothing to decide.

Not here: when to claim (`delivery`), the rate (`rate_limiter`), HTTP (`client`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from mm_tasks.buffer import clock, histograms
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.rate_limiter import SLOT_VALID_MS
from mm_tasks.buffer.records import HEADER_BYTES
from mm_tasks.buffer.scheduled import Scheduled
from mm_tasks.buffer.scripts import Script
from mm_tasks.events import ids
from mm_tasks.events.lanes import sharing
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from redis import Redis

    from mm_tasks.buffer.histograms import RequestStats

_READINESS, _CLAIM, _ASSIGN_SLOT = map(
    Script, ("batch_readiness", "batch_claim", "batch_assign_slot")
)
_BEGIN, _TAKE_OVER, _ACK = map(Script, ("batch_begin", "batch_take_over", "batch_ack"))
_RELEASE, _BISECT, _FILTER, _BURY = map(
    Script, ("batch_release", "batch_bisect", "batch_filter", "batch_bury")
)

# A claimed batch this long past its slot means that sending does not keep up.
LATE_MS = 1000
CLAIMED_MAX = 500
# After this, the message of a claimed batch counts as lost. A second message is harmless.
FOUND_AGAIN_MS = SLOT_VALID_MS + 3000

Bisected = Literal["old", "narrowed", "buried", "systematic", "refused", "again"]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one request, and how long a part-full batch waits for more records."""

    events_max: int
    bytes_max: int
    linger_ms: int


@dataclass(frozen=True, slots=True)
class Admitted:
    """An attempt may be sent now, and by this worker alone until the lease ends.

    `bodies` are all bodies of the batch, or a part of them while a refused event is sought.
    They are empty when the attempt was taken over to settle it; `sent` still counts them.
    """

    token: str
    attempt: int
    in_a_row: int  # attempts since the last definite answer, this one included
    generation: int
    bodies: list[bytes]
    sent: int
    left: int = 0  # records of the batch that this attempt does not send
    paused: str = ""  # the kind of the pause, if this is its probe
    asked_at_s: float = 0  # monotonic clock of the process, just before it was admitted
    exchange: RequestStats | None = None  # None until a request was made


@dataclass(frozen=True, slots=True)
class Rejection:
    """An attempt may not be sent; see `batch_begin.lua` for the reasons."""

    reason: Literal["gone", "unloaded", "held", "paused", "wait", "slot", "empty"]
    wait_s: float = 0


class Batches:
    """The batches of one lane of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str, lane: str, limits: BatchLimits) -> None:
        """Take everything as arguments; read and open nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._project = ProjectKeys(project)
        self._keys = self._project.lane(lane)
        self._limits = limits
        self._full = (lane, limits.events_max, limits.bytes_max - BATCH_BRACKETS_BYTES)
        self.lane = lane
        self.scheduled = Scheduled(redis, project, lane)

    def readiness(
        self, *, late_ms: int = LATE_MS, claimed_max: int = CLAIMED_MAX, linger: bool = True
    ) -> str:
        """Return the state of the lane, which decides the next step: see `batch_readiness.lua`."""
        keys, project = self._keys, self._project
        places = (keys.waiting, keys.claimed, project.counts)
        holds = (project.pause, keys.throttle, keys.outage, project.fences)
        linger_ms = self._limits.linger_ms if linger else 0
        args = (*self._full, linger_ms, late_ms * 1000, claimed_max)
        return str(_READINESS(self._redis, (*places, *holds), args), "ascii")

    def claim(
        self, *, slot_us: int | None, found_again_ms: int = FOUND_AGAIN_MS, linger: bool = True
    ) -> str | None:
        """Make a batch of the oldest records for this slot and return its id.

        None when no batch is ready or not all fences are loaded.
        """
        batch_id, keys, project = new_id(), self._keys, self._project
        fences = (project.fence, project.fences, project.caught)
        linger_ms = self._limits.linger_ms if linger else 0
        slot = "" if slot_us is None else slot_us
        places = (keys.waiting, *self._places(batch_id), *fences)
        args = (*self._full, batch_id, linger_ms, slot, found_again_ms)
        # Each call that must be repeated removed a thousand records of erased persons or more.
        while (claimed := int(_CLAIM(self._redis, places, args))) < 0:
            pass
        return batch_id if claimed else None

    def due(self, limit: int, *, everything: bool = False) -> list[str]:
        """Return ids of batches that a flush must handle, most overdue first.

        They are forgotten, due for a retry, or their lease expired. With `everything`, return
        the ids of all batches.
        """
        now = "+inf" if everything else clock.read(self._redis, self._project.name).now_ms
        leases = self._keys.leases
        ids = self._redis.zrange(leases, "-inf", now, byscore=True, offset=0, num=limit)
        return [str(batch_id, "ascii") for batch_id in ids]

    def held_against(self, batch_ids: list[str]) -> set[str]:
        """Return those whose first record may be stored already, or that a filter refused."""
        pipeline = self._redis.pipeline(transaction=False)
        for batch_id in batch_ids:
            pipeline.hmget(self._keys.batch(batch_id), "doubt", "passed")
        found = zip(batch_ids, pipeline.execute(), strict=True)
        return {batch_id for batch_id, fields in found if any(fields)}

    def assign_slot(
        self, batch_id: str, *, slot_us: int | None, found_again_ms: int = FOUND_AGAIN_MS
    ) -> bool:
        """Give a slot to a batch; False when it is gone or being sent."""
        keys = self._keys
        args = (batch_id, "" if slot_us is None else slot_us, found_again_ms)
        places = (keys.batch(batch_id), keys.claimed, keys.leases)
        return bool(_ASSIGN_SLOT(self._redis, places, args))

    def begin(
        self, batch_id: str, *, slot: str, lease_ms: int, slot_valid_ms: int = SLOT_VALID_MS
    ) -> Admitted | Rejection:
        """Admit one attempt, or return the reason against it. `slot` is as in `batch_begin.lua`."""
        token, asked_at_s = new_id(), time.monotonic()
        keys, project = self._keys, self._project
        holds = (project.fence, project.pause, keys.throttle, keys.outage)
        verdict, *rest = _BEGIN(
            self._redis,
            (*self._places(batch_id), *holds, project.fences, project.caught, keys.failures),
            (self.lane, batch_id, token, slot, slot_valid_ms * 1000, lease_ms),
        )
        if verdict == b"admitted":
            attempt, in_a_row, generation, left, paused, *records = rest
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
                asked_at_s=asked_at_s,
            )
        reason: Any = str(verdict, "ascii")
        return Rejection(reason, rest[0] / 1e6 if rest else 0)

    def take_over(self, batch_id: str, *, lease_ms: int) -> Admitted | None:
        """Take over a batch whose lease expired while it was sent; None if it did not."""
        token, keys = new_id(), self._keys
        places = (keys.batch(batch_id), keys.leases)
        fields = _TAKE_OVER(self._redis, places, (batch_id, token, lease_ms))
        if not fields:
            return None
        attempt, in_a_row, generation, sent = map(int, fields)
        return Admitted(token, attempt, in_a_row, generation, [], sent)

    def ack(self, batch_id: str, attempt: Admitted, *, count_differs: bool = False) -> int:
        """Remove the delivered records, even if another worker holds the batch; return how many.

        0 when the batch, or the part of it that was sent, is gone.
        """
        keys, limits = self._keys, self._limits
        rows = (keys.failures, keys.refusals, keys.orphaned_request)
        stats = histograms.of_delivery(
            self.lane, attempt.exchange, limits.events_max, limits.bytes_max
        )
        args = (self.lane, batch_id, attempt.generation, int(count_differs), attempt.token)
        places = (*self._places(batch_id), *rows, self._project.histogram_counters)
        return int(_ACK(self._redis, places, (*args, histograms.AGES, *stats)))

    def release(  # noqa: PLR0913 - one for each value that the script records
        self,
        batch_id: str,
        attempt: Admitted | None,
        *,
        wait_ms: int = 0,
        grace_ms: int = 0,
        outcome: str = "",
        ambiguous: str = "",
    ) -> bool:
        """Give a batch back until `wait_ms` from now; False when the attempt's token is old.

        Without an attempt, give back a batch that was never begun.
        """
        token, exchange = ("", None) if attempt is None else (attempt.token, attempt.exchange)
        places = (*self._places(batch_id), self._project.histogram_counters)
        args = (self.lane, batch_id, token, wait_ms, grace_ms, outcome, ambiguous)
        stats = histograms.of_request(self.lane, exchange)
        return bool(_RELEASE(self._redis, places, (*args, *stats)))

    def bisect(self, batch_id: str, attempt: Admitted, *, why: str, isolation_max: int) -> Bisected:
        """Send less of a refused batch next, or bury its one event: see `batch_bisect.lua`."""
        assert "\n" not in why
        keys, project = self._keys, self._project
        dead = (keys.failures, project.dead, project.dead_at, keys.refusals)
        places = (*self._places(batch_id), *dead, project.histogram_counters)
        args = (self.lane, batch_id, attempt.token, why, isolation_max)
        stats = histograms.of_request(self.lane, attempt.exchange)
        return cast("Bisected", str(_BISECT(self._redis, places, (*args, *stats)), "ascii"))

    def bisect_filtered(self, batch_id: str, attempt: Admitted, *, why: str) -> Bisected:
        """Bisect a batch that a filter refused if other events pass: see `batch_filter.lua`."""
        assert "\n" not in why
        project = self._project
        dead = (project.dead, project.dead_at, project.histogram_counters)
        places = (*self._places(batch_id), *dead)
        is_probe, lanes = int(attempt.paused != ""), " ".join(sharing(self.lane))
        args = (self.lane, batch_id, attempt.token, why, is_probe, lanes)
        stats = histograms.of_request(self.lane, attempt.exchange)
        return cast("Bisected", str(_FILTER(self._redis, places, (*args, *stats)), "ascii"))

    def bury(
        self, batch_id: str, attempt: Admitted, *, why: str, outcome: str, ambiguous: str = ""
    ) -> int:
        """Make dead letters of the records that were sent; return how many.

        `why` is one line of JSON. 0 when the attempt's token is old.
        """
        assert "\n" not in why
        project = self._project
        dead = (project.dead, project.dead_at, project.histogram_counters)
        args = (self.lane, batch_id, attempt.token, outcome, ambiguous, why)
        stats = histograms.of_request(self.lane, attempt.exchange)
        return int(_BURY(self._redis, (*self._places(batch_id), *dead), (*args, *stats)))

    def _places(self, batch_id: str) -> tuple[str, str, str, str, str]:
        keys = self._keys
        of_batch = (keys.records(batch_id), keys.batch(batch_id))
        return (*of_batch, keys.claimed, keys.leases, self._project.counts)


def new_id() -> str:
    """Return a new id for a batch or an attempt (UUIDv7, RFC 9562)."""
    return ids.uuid7()
