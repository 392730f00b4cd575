"""A circuit breaker: while Redis is away, calls fail at once instead of waiting for it.

It opens when no connection could be made, or when an answer did not come in time. An error that
Redis answers never opens it, nor does a connection that was cut: both cost the caller no time.
While it is open, one call each `probe_interval_s` passes as a probe; any answer closes it.

A process has one for each address. Closed, it costs a call the read of one attribute.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING

import redis

if TYPE_CHECKING:
    from collections.abc import Callable

PROBE_INTERVAL_S = 1.0


class NotApplied(redis.RedisError):
    """The command was not applied: it was not sent, or Redis refused it."""


class Away(NotApplied):
    """The breaker is open. Its text says for how long."""


class Breaker:
    """The state of one address: closed, or open since some time. Threads share it."""

    def __init__(
        self,
        probe_interval_s: float = PROBE_INTERVAL_S,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Take the time between two probes. With 0 every call is one, so none is refused."""
        self._probe_interval_s = probe_interval_s
        self._clock = clock
        self._away_since_s: float | None = None
        self._probe_at_s = 0.0
        # Reentrant: a signal handler may track an event while its thread is here.
        self._lock = threading.RLock()

    def check(self) -> bool:
        """Raise `Away` while the breaker is open, unless this call is the next probe.

        Returns whether it is one: a probe need not ask again when it has waited for its turn.
        """
        return self._away_since_s is not None and self._admit_probe()

    def failed(self) -> None:
        """Open the breaker, or leave it open until the next probe."""
        with self._lock:
            now_s = self._clock()
            if self._away_since_s is None:
                self._away_since_s = now_s
            self._probe_at_s = now_s + self._probe_interval_s

    def answered(self) -> None:
        """Close the breaker: Redis answered."""
        if self._away_since_s is not None:
            self._away_since_s = None

    def _admit_probe(self) -> bool:
        with self._lock:
            now_s, since_s = self._clock(), self._away_since_s
            if since_s is None:
                return False
            if now_s >= self._probe_at_s:
                self._probe_at_s = now_s + self._probe_interval_s
                return True
        msg = f"Redis has been away for {now_s - since_s:.0f} s; the next try is in a second"
        raise Away(msg)
