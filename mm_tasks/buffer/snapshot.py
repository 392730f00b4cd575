"""One atomic read of the state of a project; status, metrics and `top` start from it.

Writes nothing. `lua/common.lua` documents the counts.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script
from mm_tasks.events.lanes import LANES

if TYPE_CHECKING:
    from redis import Redis

    from mm_tasks.buffer.clock import Clock

_SNAPSHOT = Script("snapshot")


@dataclass(frozen=True, slots=True)
class Lane:
    """One lane: `waiting` events, `batches` of which `claimed` wait for their slot.

    `throttle_until_us` is 0 without the wait of a 429, `outage` is empty without one. Both
    belong to the endpoint, so `track` and `backfill` have the same.
    """

    name: str
    waiting: int
    oldest_ms: int | None
    claimed: int
    batches: int
    throttle_until_us: int
    throttle_since_ms: int
    outage: dict[str, str]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A project at one instant of its clock. Instants are of that clock, but not `Paused.since`.

    `pause` is the pause of the project: empty, or `kind`, `status`, `code`, `since_ms` and
    more. `rate_tat_us` is the end of the last reserved slot, 0 before the first one.
    """

    project: str
    clock: Clock
    counts: dict[str, int]
    pause: dict[str, str]
    fence_tags: int
    fences_loaded: bool
    fences_why: str
    fences_since_ms: int
    rate_tat_us: int
    lanes: dict[str, Lane]

    def by_lane(self, name: str) -> dict[str, int]:
        """Return a count of each lane."""
        return {lane: self.counts.get(f"{lane}:{name}", 0) for lane in self.lanes}

    def total(self, name: str) -> int:
        """Return a count, summed over the lanes."""
        return sum(self.by_lane(name).values())

    @property
    def dead_reasons(self) -> Counter[str]:
        """Return the number of dead letters by reason, in the words of `mm-tasks dead list`.

        `unknown` are those of an earlier release that no recount has reached yet.
        """
        reasons: Counter[str] = Counter()
        for field, number in self.counts.items():
            _, is_reason, reason = field.partition(":dead:")
            if is_reason:
                reasons[reason] += number
        # Below 0 if letters of an earlier release were removed that were never counted.
        reasons = +reasons
        reasons["unknown"] += self.total("dead") - reasons.total()
        return +reasons

    @property
    def waiting(self) -> int:
        """Return the number of waiting events in all lanes."""
        return sum(lane.waiting for lane in self.lanes.values())

    @property
    def oldest_waiting_s(self) -> float | None:
        """Return the age of the oldest waiting event; None without one."""
        return max(self.ages_s.values(), default=None)

    @property
    def ages_s(self) -> dict[str, float]:
        """Return the age of the oldest waiting event of each lane that has one."""
        return {
            name: self._since(lane.oldest_ms / 1e3)
            for name, lane in self.lanes.items()
            if lane.oldest_ms is not None
        }

    @property
    def paused_for_s(self) -> float:
        """Return the duration of the pause so far; 0 without one."""
        return (
            0.0
            if self.paused is None
            else self._since(self.paused.since + self.clock.ahead_us / 1e6)
        )

    @property
    def now_us(self) -> int:
        """Return the time of the project's clock."""
        return self.clock.now_us

    def _since(self, at_s: float) -> float:
        return max(0.0, self.now_us / 1e6 - at_s)

    @property
    def slots_ahead_s(self) -> float:
        """Return the time until the quota is full again; 0 when it is full."""
        return max(0.0, (self.rate_tat_us - self.now_us) / 1e6)

    @property
    def paused(self) -> Paused | None:
        """Return why the project or one lane is stopped; None when nothing is."""
        if not self.fences_loaded and self.fences_why:
            reason = f"fences_not_loaded: - {self.fences_why}"
            return Paused(reason, self.clock.shown_s(self.fences_since_ms))
        for stop in (self.pause, *(lane.outage for lane in self.lanes.values())):
            if "kind" in stop:
                reason = "{kind}: {status} {code}".format(**stop)
                return Paused(reason, self.clock.shown_s(int(stop["since_ms"])))
        for lane in self.lanes.values():
            if lane.throttle_until_us > self.now_us:
                since = self.clock.shown_s(lane.throttle_since_ms)
                return Paused("throttled: 429 rate_limited", since)
        return None


@dataclass(frozen=True, slots=True)
class Paused:
    """`reason` is `<kind>: <status> <code>`; `since` is in seconds of Redis's clock."""

    reason: str
    since: float

    @property
    def kind(self) -> str:
        """Return the first word of the reason."""
        return self.reason.partition(":")[0]


def read(redis: Redis, project: str) -> Snapshot:
    """Return the current state of the project; raises redis-py's errors."""
    keys = ProjectKeys(project)
    lanes = [keys.lane(name) for name in LANES]
    of_lanes = [(k.waiting, k.claimed, k.leases, k.throttle, k.outage) for k in lanes]
    named = (keys.counts, keys.pause, keys.fence, keys.fences, keys.rate)
    places = (*named, *sum(of_lanes, ()))
    redis_us, stored, counts, pause, fence, tat_us, *rows = _SNAPSHOT(redis, places, ())
    return Snapshot(
        project=project,
        clock=clock.of(int(redis_us), _numbers(stored)),
        counts=_numbers(counts),
        pause=_fields(pause),
        fence_tags=int(fence[0]),
        fences_loaded=bool(fence[1]),
        fences_why=fence[2].decode(),
        fences_since_ms=int(fence[3] or 0),
        rate_tat_us=int(tat_us or 0),
        lanes={name: _lane(name, row) for name, row in zip(LANES, rows, strict=True)},
    )


def _lane(name: str, row: list[Any]) -> Lane:
    waiting, oldest, claimed, batches, throttle, outage = row
    until_us, since_ms = map(int, throttle.split()) if throttle else (0, 0)
    oldest_ms = int(oldest) if oldest else None
    return Lane(name, waiting, oldest_ms, claimed, batches, until_us, since_ms, _fields(outage))


def _numbers(flat: list[bytes]) -> dict[str, int]:
    return {name: int(value) for name, value in _fields(flat).items()}


def _fields(flat: list[bytes]) -> dict[str, str]:
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {name.decode(): value.decode() for name, value in pairs}
