"""Records that become waiting at a time: stored by `producer`, moved by each flush.

Moving them needs no message and no timer: whichever worker flushes first after a record is due
moves it. Several flushes at once share the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis import Redis

# Records read in one step: about 2 ms.
STEP = 500

# Run by `Producer.schedule`.
STORE = Script("scheduled_store")
_DUE, _PURGE = Script("scheduled_due"), Script("scheduled_purge")


class Scheduled:
    """The scheduled records of one lane of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str, lane: str) -> None:
        """Take everything as arguments; read and open nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._project = ProjectKeys(project)
        self._keys = self._project.lane(lane)
        self._lane = lane

    def move_due(self, *, step: int = STEP) -> None:
        """Move all records that are due to the waiting ones, unless fences are not loaded."""
        keys, project = self._keys, self._project
        fences = (project.fence, project.fences, project.caught)
        places = (keys.scheduled, keys.waiting, project.counts, *fences)
        while _DUE(self._redis, places, (self._lane, step)) == step:
            pass

    def purge(self, tags: Sequence[bytes], *, step: int = STEP) -> Iterator[Sequence[int]]:
        """Remove the records of fenced subjects. Safe to repeat.

        Yields for each step, in turn, the position (from 1) of a tag and the number removed for it.
        """
        places = (self._keys.scheduled, self._project.counts)
        cursor = b"0"
        while True:
            cursor, *found = _PURGE(self._redis, places, (self._lane, cursor, step, *tags))
            yield found
            if cursor == b"0":
                return
