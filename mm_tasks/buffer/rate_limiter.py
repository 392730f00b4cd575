"""The shared rate: GCRA on Redis's clock that reserves slots ahead of time.

The answer is the time of a slot, so a batch knows its countdown and nobody
polls. See `lua/rate_reserve.lua` for the arithmetic; a slot is good for
`SLOT_VALID_MS` after its start, which `begin` checks.
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
    """A reserved instant: how far off it is, and when on Redis's clock (µs)."""

    wait_s: float
    start_us: int


class Limiter:
    """The quota of one endpoint: `rate_per_s` sustained, `burst` at once from idle."""

    def __init__(
        self, redis: Redis, project: str, lane: str, rate_per_s: float, burst: int
    ) -> None:
        """Take the quota; rounded so that we never send more than it."""
        keys = ProjectKeys(project)
        self._redis = redis
        self._keys = (keys.rate, keys.lane(lane).throttle)
        self.interval_us = math.ceil(1e6 / rate_per_s)
        self._burst = burst

    def reserve(
        self, max_wait_s: float, *, ahead_max_s: float | None = None, now_us: int | None = None
    ) -> Slot | None:
        """Take the next slot; None, and nothing is taken, when it is further off than asked.

        That is `ahead_max_s`, or `max_wait_s` where it is None. Always called with the same
        `max_wait_s`: a state further ahead than that allows is taken for a clock step.
        `now_us` is for tests.
        """
        if ahead_max_s is None:
            ahead_max_s = max_wait_s
        wait_us, start_us = _RESERVE(
            self._redis,
            self._keys,
            (
                self.interval_us,
                self._burst,
                round(max_wait_s * 1e6),
                round(ahead_max_s * 1e6),
                "" if now_us is None else now_us,
            ),
        )
        return None if wait_us < 0 else Slot(wait_us / 1e6, start_us)

    def spare_lookahead_s(self, every_s: float) -> float:
        """Return how far ahead to reserve to use what is left over, coming every `every_s`.

        0 while the burst holds what accrues meanwhile, with half as much for jitter: then
        whoever reserves further ahead finds a slot within one interval at any time.
        """
        burst_s = self._burst * self.interval_us / 1e6
        return min(every_s, max(0.0, 1.5 * every_s - burst_s))

    @property
    def refill_ms(self) -> int:
        """Return how long an empty quota takes to be full again."""
        return math.ceil(self._burst * self.interval_us / 1000)
