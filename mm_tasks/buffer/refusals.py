"""Events that calls of this process did not store, counted by reason until Redis takes the counts.

Redis takes them at most once a second, after an append that it answered, and when the process
ends. So a count costs no round trip where Redis is away, and a process that is killed loses
those of its last second. If Redis does not answer while it takes them, they are sent again, and
may count twice.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from logging import getLogger
from typing import TYPE_CHECKING, Literal

from redis.exceptions import RedisError

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script, packed, with_clock

if TYPE_CHECKING:
    from collections.abc import Callable

    from mm_tasks.connections.async_client import LoopPool
    from mm_tasks.connections.pool import Pool

Reason = Literal["full", "unavailable", "invalid"]
REASONS: tuple[Reason, ...] = ("full", "unavailable", "invalid")
_INTERVAL_S = 1.0
_LOG_INTERVAL_S = 60.0
_ADD = Script("refusals_add")
_log = getLogger(__name__)


class Refusals:
    """The counts of one process and project. Threads share it."""

    def __init__(self, project: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Begin with no counts; open nothing."""
        self._key = ProjectKeys(project).counts
        self._clock = clock
        self._pending: Counter[str] = Counter()
        self._next_s = 0.0
        self._dropped = 0
        self._log_at_s = 0.0
        # Reentrant: a signal handler may track an event while its thread is here.
        self._lock = threading.RLock()

    def add(self, lane: str, reason: Reason, events: int, unanswered: int = 0) -> None:
        """Count events that were refused; of `unanswered` ones Redis did not say so."""
        with self._lock:
            self._pending[f"{lane}:refused:{reason}"] += events
            if unanswered:
                self._pending[f"{lane}:unanswered"] += unanswered

    def log_dropped(self, reason: Reason, events: int) -> None:
        """Log how many events were dropped since the last line, at most once a minute."""
        with self._lock:
            self._dropped += events
            if self._clock() < self._log_at_s:
                return
            self._log_at_s = self._clock() + _LOG_INTERVAL_S
            dropped, self._dropped = self._dropped, 0
        _log.warning("events_dropped", extra={"events": dropped, "reason": reason})

    @property
    def is_due(self) -> bool:
        """Return whether Redis should take the counts: there are some, and a second is over."""
        return bool(self._pending) and self._clock() >= self._next_s

    def store(self, pool: Pool) -> None:
        """Let Redis take the counts. If it fails, they stay for the next time."""
        if command := self._taken():
            try:
                pool.call(packed(command), _ADD.text)
            except RedisError:
                self._put_back(command)

    async def astore(self, pool: LoopPool) -> None:
        """As `store`, on the connections of the running event loop."""
        if command := self._taken():
            try:
                await pool.call(packed(command), _ADD.text)
            except RedisError:
                self._put_back(command)

    def _taken(self) -> tuple[object, ...]:
        """Return the command that adds the counts, which are now its own; empty without any."""
        with self._lock:
            self._next_s = self._clock() + _INTERVAL_S
            pairs = [word for pair in self._pending.items() for word in pair]
            self._pending.clear()
        keys = with_clock((self._key,))
        return ("EVALSHA", _ADD.sha, len(keys), *keys, *pairs) if pairs else ()

    def _put_back(self, command: tuple[object, ...]) -> None:
        with self._lock:
            for name, events in zip(command[5::2], command[6::2], strict=True):
                self._pending[str(name)] += int(str(events))
