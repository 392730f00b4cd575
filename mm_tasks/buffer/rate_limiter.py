"""The shared rate: GCRA on Redis's clock that reserves slots ahead of time.

A reservation returns the time of its slot, so a batch knows its countdown and no worker
polls. `lua/rate_reserve.lua` has the arithmetic. A slot is valid for `SLOT_VALID_MS` after
its start; `begin` checks that.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from redis import Redis

# Jitter between a slot and its request: at most rate x 2 s more in any window.
SLOT_VALID_MS = 2000

_RESERVE = Script("rate_reserve")


class Slot(NamedTuple):
    """A reserved instant: the time until it, and its time on Redis's clock (µs)."""

    wait_s: float
    start_us: int


class Limiter:
    """The quota of one endpoint: `rate_per_s` sustained, `burst` at once from idle."""

    def __init__(
        self, redis: Redis, project: str, lane: str, rate_per_s: float, burst: int
    ) -> None:
        """Take the quota; the interval is rounded up, so that we never exceed it."""
        keys = ProjectKeys(project)
        self._redis = redis
        self._keys = (keys.rate, keys.lane(lane).throttle)
        self._interval_us = math.ceil(1e6 / rate_per_s)
        self._burst = burst

    def reserve(
        self, max_wait_s: float, *, ahead_max_s: float | None = None, now_us: int | None = None
    ) -> Slot | None:
        """Reserve the next slot if it is at most `ahead_max_s` away, otherwise return None.

        `ahead_max_s` defaults to `max_wait_s`. All callers pass the same `max_wait_s`: a stored
        state further ahead than it allows counts as a step of the clock. `now_us` is for tests.
        """
        ahead_s = max_wait_s if ahead_max_s is None else ahead_max_s
        bounds_us = (round(max_wait_s * 1e6), round(ahead_s * 1e6))
        args = (self._interval_us, self._burst, *bounds_us, "" if now_us is None else now_us)
        wait_us, start_us = _RESERVE(self._redis, self._keys, args)
        return None if wait_us < 0 else Slot(wait_us / 1e6, start_us)

    def spare_lookahead_s(self, every_s: float) -> float:
        """Return how far ahead to reserve the spare slots, when called every `every_s`.

        0 while the burst holds the slots of 1.5 intervals (the half is for jitter): then a lane
        that reserves further ahead finds a slot within one interval at any time.
        """
        burst_s = self._burst * self._interval_us / 1e6
        return min(every_s, max(0.0, 1.5 * every_s - burst_s))

    @property
    def refill_ms(self) -> int:
        """Return the time in which an empty quota is full again."""
        return math.ceil(self._burst * self._interval_us / 1000)
