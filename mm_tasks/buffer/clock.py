"""The clock of a project: Redis's clock, except that it never goes back.

Redis's clock may be set back, by a person, by NTP or by a failover. Then the project's clock
runs on from the latest time that it has shown, and stays ahead by the size of the step. So no
stored instant moves into the future. A step forward is followed: what waits is due early.

The scripts read and keep it: `now_us` and `tick` in `lua/common.lua`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys

if TYPE_CHECKING:
    from collections.abc import Mapping

    from redis import Redis


_DAY_US = 86_400_000_000


class ClockStep(NamedTuple):
    """A step of Redis's clock: its size, below 0 if back, and its time, on that clock."""

    by_s: float
    at_s: float


class Clock(NamedTuple):
    """The project's time, how far it is ahead of Redis's clock, and the last step (all µs).

    An instant that the project stored minus `ahead_us` is the time to show to people.
    """

    now_us: int
    ahead_us: int
    stepped_at_us: int = 0
    stepped_by_ms: int = 0

    @property
    def now_ms(self) -> int:
        """Return the project's time in milliseconds."""
        return self.now_us // 1000

    @property
    def redis_s(self) -> float:
        """Return the time of Redis's clock in seconds."""
        return (self.now_us - self.ahead_us) / 1e6

    @property
    def step(self) -> ClockStep | None:
        """Return the last step of Redis's clock, for a day; None without one."""
        if not 0 < self.now_us - self.stepped_at_us < _DAY_US:
            return None
        return ClockStep(self.stepped_by_ms / 1000, self.shown_s(self.stepped_at_us / 1000))

    def shown_s(self, stored_ms: float) -> float:
        """Return a stored instant in seconds of Redis's clock, to show it."""
        return stored_ms / 1e3 - self.ahead_us / 1e6


def read(redis: Redis, project: str) -> Clock:
    """Return the clock of a project; write nothing."""
    pipeline = redis.pipeline(transaction=False)
    pipeline.time()
    pipeline.hgetall(ProjectKeys(project).clock)
    (seconds, micros), stored = pipeline.execute()
    return of(seconds * 1_000_000 + micros, {name.decode(): int(at) for name, at in stored.items()})


def of(redis_us: int, stored: Mapping[str, int]) -> Clock:
    """Return the clock from the time of Redis and the stored fields."""
    now_us = max(redis_us + stored.get("ahead_us", 0), stored.get("seen_us", 0))
    step = (stored.get("stepped_at_us", 0), stored.get("stepped_by_ms", 0))
    return Clock(now_us, now_us - redis_us, *step)
