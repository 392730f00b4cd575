"""Remove subjects' records from everything that Redis holds, in small atomic steps.

The subjects are fenced before, so no record of theirs is added behind a scan; the scripts
explain why none moves past it. Records in an attempt that is being sent stay, and the scan
reports them: the caller must wait for that attempt.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from redis.exceptions import ResponseError

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scheduled import Scheduled
from mm_tasks.buffer.scripts import Script
from mm_tasks.events.lanes import LANES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from redis import Redis

# Records read in one step: about 1 ms, and up to 3 ms more to remove those in a long list.
STEP = 1000
# Of all subjects of one scan.
TAGS_MAX = 1000

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


class Aof(NamedTuple):
    """Redis's AOF on the server `run_id`; `is_rewritten` is how the last rewrite ended."""

    run_id: str
    is_on: bool
    is_running: bool
    is_rewritten: bool


class _Step(NamedTuple):
    """Numbers of removed records, and the times until leases of attempts end (ms), by tag."""

    place: str
    removed: Mapping[bytes, int]
    sending_ms: Mapping[bytes, int]


class Purge:
    """The records of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; read nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._keys = ProjectKeys(project)
        self._scheduled = {lane: Scheduled(redis, project, lane) for lane in LANES}

    def scan(
        self,
        subjects: Mapping[str, Sequence[bytes]],
        keep_alive: Callable[[], object] = lambda: None,
        *,
        is_again: bool = False,
    ) -> dict[str, Scan]:
        """Remove and count the records of subjects, each a name and tags; return a scan for each.

        One pass over the records serves all subjects, of at most `TAGS_MAX` tags together. Calls
        `keep_alive` at each step. A record of two subjects counts once: for that of its user,
        and of two subjects with the same tag for the first.

        Places: `<lane>:scheduled`, `<lane>:waiting`, `<lane>:batches`, `<lane>:dead`, and `fence`
        for stored records that were moved, claimed, begun or revived, and removed because of the
        fence. Safe to repeat.

        With `is_again` all of them were scanned before, under the fence. Since then no record of
        theirs can wait or be scheduled: each script that puts one there asks the fence. Only
        batches stay that were being sent, and dead letters made of these; nothing else is read.
        """
        owners = _owners(subjects)
        removed: dict[str, Counter[str]] = {name: Counter() for name in subjects}
        sending_ms = dict.fromkeys(subjects, 0)
        places = set()
        for step in self._steps(tuple(owners), is_again=is_again):
            places.add(step.place)
            for tag, n in step.removed.items():
                removed[owners[tag][0]][step.place] += n
            for tag, lease_ms in step.sending_ms.items():
                for name in owners[tag]:
                    sending_ms[name] = max(sending_ms[name], lease_ms)
            keep_alive()
        for name, tags in subjects.items():
            removed[name].update(dict.fromkeys(places, 0))
            removed[name]["fence"] = int(_FENCED_COUNT(self._redis, (self._keys.caught,), tags))
        return {name: Scan(removed[name], sending_ms[name]) for name in subjects}

    def aof(self) -> Aof:
        """Return the state of Redis's AOF."""
        info = self._redis.info("persistence")
        return Aof(
            self._redis.info("server")["run_id"],
            is_on=bool(info.get("aof_enabled")),
            is_running=bool(
                info.get("aof_rewrite_in_progress") or info.get("aof_rewrite_scheduled")
            ),
            is_rewritten=info.get("aof_last_bgrewrite_status") == "ok",
        )

    def rewrite_aof(self) -> str:
        """Make Redis rewrite its AOF without the removed records; does not wait for the end.

        `started`; `running`, if it rewrites already; `refused`, if a provider does not allow the
        command.
        """
        try:
            self._redis.bgrewriteaof()
        except ResponseError:
            return "running" if self.aof().is_running else "refused"
        return "started"

    def _steps(self, tags: Sequence[bytes], *, is_again: bool) -> Iterator[_Step]:
        if not is_again:
            yield from self._pending(tags)
        for lane in LANES:
            yield from self._batches(lane, tags)
        # Last, because a batch may have been buried meanwhile.
        yield from self._dead(tags)

    def _pending(self, tags: Sequence[bytes]) -> Iterator[_Step]:
        for lane, scheduled in self._scheduled.items():
            for flat in scheduled.purge(tags):
                yield _Step(f"{lane}:scheduled", _by_tag(tags, flat), {})
        for lane in LANES:
            yield from self._waiting(lane, tags)

    def _waiting(self, lane: str, tags: Sequence[bytes]) -> Iterator[_Step]:
        places = (self._keys.lane(lane).waiting, self._keys.counts)

        def step(last: str | int) -> tuple[int, _Step]:
            following, *flat = _WAITING(self._redis, places, (lane, last, STEP, *tags))
            return following, _Step(f"{lane}:waiting", _by_tag(tags, flat), {})

        # While most records at the head are theirs: there a removal costs the least.
        is_theirs = True
        while is_theirs:
            _, done = step("head")
            is_theirs = sum(done.removed.values()) > STEP / 2
            yield done
        last: str | int = ""
        while last != -1:
            last, done = step(last)
            yield done

    def _batches(self, lane: str, tags: Sequence[bytes]) -> Iterator[_Step]:
        keys, place = self._keys.lane(lane), f"{lane}:batches"
        for batch_id in map(bytes.decode, self._redis.zrange(keys.leases, 0, -1)):
            places = (keys.records(batch_id), keys.batch(batch_id), keys.claimed, keys.leases)
            args = (lane, batch_id, *tags)
            lease_ms, *flat = _BATCH(self._redis, (*places, self._keys.counts), args)
            found = _by_tag(tags, flat)
            yield _Step(place, found, dict.fromkeys(found, lease_ms))
        # Last, because a late success may have removed a batch of the list.
        orphaned_ms = self._orphaned_ms(keys.orphaned_request)
        yield _Step(place, {}, dict.fromkeys(tags, orphaned_ms))

    def _orphaned_ms(self, key: str) -> int:
        ends_ms = int(self._redis.get(key) or 0)
        if ends_ms == 1:  # written by an earlier release
            return int(self._redis.pttl(key))
        return ends_ms - clock.read(self._redis, self._keys.name).now_ms

    def _dead(self, tags: Sequence[bytes]) -> Iterator[_Step]:
        places = (self._keys.dead, self._keys.dead_at, self._keys.counts)
        last: str | int = ""
        while last != -1:
            last, *flat = _DEAD(self._redis, places, (last, STEP, *tags))
            for lane in LANES:
                triples = zip(flat[::3], flat[1::3], flat[2::3], strict=True)
                of_lane = {tags[i - 1]: n for name, i, n in triples if name.decode() == lane}
                yield _Step(f"{lane}:dead", of_lane, {})


def _owners(subjects: Mapping[str, Sequence[bytes]]) -> dict[bytes, list[str]]:
    """Return the names of the subjects of each tag; two erasures may name the same visitor."""
    owners: dict[bytes, list[str]] = {}
    for name, tags in subjects.items():
        for tag in tags:
            owners.setdefault(tag, []).append(name)
    assert len(owners) <= TAGS_MAX
    return owners


def _by_tag(tags: Sequence[bytes], flat: Sequence[int]) -> dict[bytes, int]:
    """Return the numbers of a reply, which has a tag's position (from 1) before each, by tag."""
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {tags[position - 1]: number for position, number in pairs}
