"""A circuit breaker with a half-open probe: pauses, outages and the waits of 429s.

A pause stops the project, an outage one endpoint, a throttle one endpoint until a time. They
are separate keys: a short wait cannot end a pause, and a success of one endpoint cannot end the
outage of another. Only its probe ends a pause or an outage: one batch at a time that `begin`
admits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from redis import Redis

_PAUSE, _PROBE, _PROBE_NOW, _LIFT, _THROTTLE = map(
    Script, ("pause_start", "pause_probe", "pause_probe_now", "pause_resume", "pause_throttle")
)


class Pauses:
    """The pause of a project, and the outage and throttle of the endpoint of one lane.

    Without a lane only the pause: for the calls of erasures, which carry no batch. The id of the
    erasure then stands for that of a batch.
    """

    def __init__(self, redis: Redis, project: str, lane: str | None) -> None:
        """Take the client; read nothing."""
        self._redis = redis
        keys = ProjectKeys(project)
        self._pause = keys.pause
        if lane is None:
            self._stops, self._failures = (keys.pause, keys.pause), keys.void
            return
        of_lane = keys.lane(lane)
        self._stops = (keys.pause, of_lane.outage)
        self._failures = of_lane.failures
        self._throttle = of_lane.throttle

    def is_paused(self) -> bool:
        """Return whether the project is paused: the vendor refuses the key or the host."""
        return bool(self._redis.exists(self._pause))

    def pause(  # noqa: PLR0913 - the reason has three parts
        self,
        batch_id: str,
        kind: str,
        *,
        status: str,
        code: str,
        first_ms: int,
        probe_ms: int,
        failures_max: int = 0,
    ) -> bool:
        """Pause, or count one of `failures_max` failures in a row; return whether paused.

        The kind decides whether the project or this endpoint pauses: see `pause_start.lua`.
        """
        keys = (*self._stops, self._failures)
        args = (batch_id, kind, status, code, first_ms, probe_ms, failures_max)
        return bool(_PAUSE(self._redis, keys, args))

    def probe_due(self) -> list[str] | None:
        """Return the ids of the refused batches when a probe is due, otherwise None."""
        due, refused = _PROBE(self._redis, self._stops, ("", 0))
        return str(refused, "ascii").split() if due else None

    def choose_probe(self, batch_id: str, *, lost_ms: int) -> bool:
        """Make this batch the probe; False when another flush was first."""
        return bool(_PROBE(self._redis, self._stops, (batch_id, lost_ms))[0])

    def probe_now(self) -> None:
        """Let the next probe of a paused project be due at once."""
        _PROBE_NOW(self._redis, (self._pause,), ())

    def lift(self, batch_id: str) -> bool:
        """End the pause if this batch is its probe; return whether it was."""
        return bool(_LIFT(self._redis, self._stops, (batch_id,)))

    def throttle(self, wait_ms: int, *, keep_ms: int) -> float:
        """Make all workers of this lane wait; return the wait in force, in seconds."""
        keys = (self._throttle, self._failures)
        return float(_THROTTLE(self._redis, keys, (wait_ms, keep_ms))) / 1000
