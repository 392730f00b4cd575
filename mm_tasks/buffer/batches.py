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

from mm_tasks.buffer import histograms
from mm_tasks.buffer.attempt import Admitted, Rejection
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES
from mm_tasks.buffer.scripts import Script
from mm_tasks.events.lanes import sharing
from mm_tasks.events.limits import BATCH_BRACKETS_BYTES

if TYPE_CHECKING:
    from redis import Redis

    from mm_tasks.buffer.attempt import RequestStats


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """What one request may carry, and for how long a part-full one waits for more."""

    events_max: int
    bytes_max: int
    linger_ms: int


class Batches:
    """One lane of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str, lane: str, limits: BatchLimits) -> None:
        """Take everything as arguments; nothing is read or opened here."""
        self._redis = redis
        self._keys = ProjectKeys(project).lane(lane)
        self._project = ProjectKeys(project)
        self._limits = limits
        self.lane = lane

    def readiness(self, *, late_ms: int, claimed_max: int, linger: bool = True) -> str:
        """Return what a flush should do next: see `batch_readiness.lua`."""
        limits, keys, project = self._limits, self._keys, self._project
        places = (keys.waiting, keys.claimed, project.counts)
        holds = (project.pause, keys.throttle, keys.outage, project.fences)
        reply = _READINESS(
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

    def assign_slot(self, batch_id: str, *, slot_us: int | None, found_again_ms: int) -> bool:
        """Give a slot to a batch nobody is sending; False when it is gone or being sent."""
        keys = self._keys
        args = (batch_id, "" if slot_us is None else slot_us, found_again_ms)
        return bool(
            _ASSIGN_SLOT(self._redis, (keys.batch(batch_id), keys.claimed, keys.leases), args)
        )

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
        """Take over a batch whose lease ran out while it was sent; None if it did not."""
        token, keys = new_id(), self._keys
        found = _TAKE_OVER(
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

    def bisect(
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
        reply: Any = _BISECT(
            self._redis, (*self._places(batch_id), *also), (*args, *histogram_counters)
        )
        return str(reply, "ascii")  # type: ignore[return-value] # one of the script's words

    def bisect_filtered(
        self,
        batch_id: str,
        token: str,
        *,
        why: str,
        is_probe: bool,
        exchange: RequestStats | None = None,
    ) -> Literal["old", "narrowed", "buried", "refused"]:
        """Bisect a batch that a filter refused if other events pass: see `batch_filter.lua`."""
        assert "\n" not in why
        project = self._project
        also = (project.dead, project.dead_at, project.histogram_counters)
        lanes = " ".join(sharing(self.lane))
        args = (self.lane, batch_id, token, why, int(is_probe), lanes)
        histogram_counters = histograms.of_request(self.lane, exchange)
        reply: Any = _FILTER(
            self._redis, (*self._places(batch_id), *also), (*args, *histogram_counters)
        )
        return str(reply, "ascii")  # type: ignore[return-value] # one of the script's words

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


_READINESS, _CLAIM, _DUE, _ASSIGN_SLOT, _BEGIN, _TAKE_OVER = map(
    Script,
    (
        "batch_readiness",
        "batch_claim",
        "batch_due",
        "batch_assign_slot",
        "batch_begin",
        "batch_take_over",
    ),
)
_ACK, _RELEASE, _BISECT, _FILTER, _BURY = map(
    Script, ("batch_ack", "batch_release", "batch_bisect", "batch_filter", "batch_bury")
)
