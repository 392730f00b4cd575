"""The shared rate: GCRA on the project's clock that reserves slots ahead of time.

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
    """A reserved instant: the time until it, and its time on the project's clock (µs).

    `start_us` is None in a lane without a limit.
    """

    wait_s: float
    start_us: int | None


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

    def reserve(self, max_wait_s: float, *, now_us: int | None = None) -> Slot | None:
        """Reserve the next slot if it is at most `max_wait_s` away, otherwise return None.

        Callers may pass different `max_wait_s`. `now_us` is for tests.
        """
        max_wait_us = round(max_wait_s * 1e6)
        args = (self._interval_us, self._burst, max_wait_us, "" if now_us is None else now_us)
        wait_us, start_us = _RESERVE(self._redis, self._keys, args)
        return None if wait_us < 0 else Slot(wait_us / 1e6, start_us)

    @property
    def refill_ms(self) -> int:
        """Return the time in which an empty quota is full again."""
        return math.ceil(self._burst * self._interval_us / 1000)
