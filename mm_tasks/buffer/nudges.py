"""Which flushes and sweeps are asked for and did not begin, so that nobody asks twice.

A message of a flush or a sweep says only "look now", so one that waits is enough. A process that
asks sets a mark in Redis, and publishes only if there was none. A worker that begins removes it
first, so that an event stored from then on can ask again. No message expires, and none piles up
while no worker runs. `ask` in `lua/common.lua` says after which time a mark no longer counts.

There is one mark for each kind of queue, as each has one scheduled task.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from redis import Redis

_ASK = Script("nudge_ask")


class Nudges:
    """The marks of one project."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client and the project; open nothing."""
        self._redis = redis
        self._keys = ProjectKeys(project)

    def ask(self, kind: str) -> bool:
        """Return whether to publish the scheduled task of this kind of queue; set its mark."""
        return bool(_ASK(self._redis, (self._keys.nudges, self._keys.heartbeats), (kind,)))

    def begin(self, kind: str) -> None:
        """Remove the mark: the scheduled task begins."""
        self._redis.hdel(self._keys.nudges, kind)
