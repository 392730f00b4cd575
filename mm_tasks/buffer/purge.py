"""Remove a subject's records from everything that Redis holds, in small atomic steps.

The subject is fenced before, so no record of theirs is added behind a scan; the scripts
explain why none moves past it. Records in an attempt that is being sent stay, and the scan
reports them: the caller must wait for that attempt.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ResponseError

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scheduled import Scheduled
from mm_tasks.buffer.scripts import Script
from mm_tasks.events.lanes import LANES

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping

    from redis import Redis

    # Removed records by place, and the time until the lease of an attempt ends (ms).
    _Step = tuple[Mapping[str, int], int]

# Records read in one step: about 1 ms.
STEP = 500

_WAITING, _BATCH, _DEAD = map(Script, ("purge_waiting", "purge_batch", "purge_dead"))
_FENCED_COUNT = Script("purge_fenced_count")


class Scan(NamedTuple):
    """The result of one scan.

    `removed` has a count for each place, zeros included. `sending_ms` is the time until the
    last lease ends of the attempts that are being sent and hold such a record, or may hold one
    because their batch is gone. 0 when there is no such attempt.
    """

    removed: Counter[str]
    sending_ms: int


class Purge:
    """The records of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; read nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._keys = ProjectKeys(project)
        self._scheduled = {lane: Scheduled(redis, project, lane) for lane in LANES}

    def scan(
        self, tags: Collection[bytes], keep_alive: Callable[[], object] = lambda: None
    ) -> Scan:
        """Remove and count the subject's records by place; call `keep_alive` at each step.

        Places: `<lane>:scheduled`, `<lane>:waiting`, `<lane>:batches`, `<lane>:dead`, and `fence`
        for stored records that were moved, claimed, begun or revived, and removed because of the
        fence. Safe to repeat.
        """
        removed: Counter[str] = Counter()
        sending_ms = 0
        for counts, lease_ms in self._steps(tags):
            removed.update(counts)
            sending_ms = max(sending_ms, lease_ms)
            keep_alive()
        removed["fence"] = int(_FENCED_COUNT(self._redis, (self._keys.caught,), tuple(tags)))
        return Scan(removed, sending_ms)

    def rewrite_aof(self, wait_s: float) -> str:
        """Make Redis rewrite its AOF without the removed records, and return the result.

        `rewritten`; `off`; `running`, when it took longer than `wait_s`; `failed`; `refused`,
        when a provider does not allow the command.
        """
        ends_at = time.monotonic() + wait_s
        is_requested = False
        while True:
            info = self._redis.info("persistence")
            if not info.get("aof_enabled"):
                return "off"
            if not (info["aof_rewrite_in_progress"] or info["aof_rewrite_scheduled"]):
                if is_requested:
                    return "rewritten" if info["aof_last_bgrewrite_status"] == "ok" else "failed"
                try:
                    self._redis.bgrewriteaof()
                except ResponseError:
                    return "refused"
                is_requested = True
            if time.monotonic() > ends_at:
                return "running"
            time.sleep(0.05)

    def _steps(self, tags: Collection[bytes]) -> Iterator[_Step]:
        for lane, scheduled in self._scheduled.items():
            yield from (({f"{lane}:scheduled": n}, 0) for n in scheduled.purge(tags))
        for lane in LANES:
            yield from self._waiting(lane, tags)
        for lane in LANES:
            yield from self._batches(lane, tags)
        # Last, because a batch may have been buried meanwhile.
        yield from self._dead(tags)

    def _waiting(self, lane: str, tags: Collection[bytes]) -> Iterator[_Step]:
        places = (self._keys.lane(lane).waiting, self._keys.counts)
        last: str | int = ""
        while last != -1:
            removed, last = _WAITING(self._redis, places, (lane, last, STEP, *tags))
            yield {f"{lane}:waiting": removed}, 0

    def _batches(self, lane: str, tags: Collection[bytes]) -> Iterator[_Step]:
        keys = self._keys.lane(lane)
        for batch_id in map(bytes.decode, self._redis.zrange(keys.leases, 0, -1)):
            places = (keys.records(batch_id), keys.batch(batch_id), keys.claimed, keys.leases)
            args = (lane, batch_id, *tags)
            removed, lease_ms = _BATCH(self._redis, (*places, self._keys.counts), args)
            yield {f"{lane}:batches": removed}, lease_ms
        # Last, because a late success may have removed a batch of the list.
        yield {f"{lane}:batches": 0}, self._redis.pttl(keys.orphaned_request)

    def _dead(self, tags: Collection[bytes]) -> Iterator[_Step]:
        places = (self._keys.dead, self._keys.dead_at, self._keys.counts)
        last: str | int = ""
        while last != -1:
            last, *removed = _DEAD(self._redis, places, (last, STEP, *tags))
            yield {f"{lane}:dead": n for lane, n in zip(LANES, removed, strict=True)}, 0
