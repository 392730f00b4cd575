"""The records of persons that Redis holds, and whether persons are fenced. Reads only.

The search goes through all records in small atomic steps and changes nothing. An event that
moves meanwhile may be found twice, or not at all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.records import HEADER_BYTES, tag
from mm_tasks.buffer.scripts import Script, bulk_strings, with_clock
from mm_tasks.events.lanes import LANES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from redis import Redis

    from mm_tasks.connections.async_client import LoopPool

# Records read in one step: about 2 ms.
STEP = 2000

_FENCED, _RECORDS = Script("subject_fenced"), Script("subject_records")


class FoundEvent(NamedTuple):
    """An event of a person: its place, such as `track:waiting`, and its JSON."""

    place: str
    body: bytes

    def __repr__(self) -> str:
        """Return the place alone."""
        return f"<FoundEvent {self.place}>"


class Subjects:
    """The persons of one project, as Redis knows them. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take the client; read nothing."""
        # redis-py types every reply as possibly awaitable.
        self._redis: Any = redis
        self._keys = ProjectKeys(project)
        # Whether the user of this client may read what waits.
        self.may_search = True

    def tags(self, user_id: str | None, anonymous_ids: Iterable[str] = ()) -> tuple[bytes, ...]:
        """Return the tags of a person's ids, that of the user first."""
        users = () if user_id is None else (user_id,)
        kinds = {"user": users, "anonymous": anonymous_ids}
        return tuple(tag(self._keys.name, kind, id_) for kind, ids in kinds.items() for id_ in ids)

    def are_fenced(self, tags: Sequence[bytes]) -> list[bool] | None:
        """Return whether each tag is fenced; None if the fences are not loaded."""
        return _truths(_FENCED(self._redis, (self._keys.fence, self._keys.fences), tags))

    async def are_fenced_async(self, pool: LoopPool, tags: Sequence[bytes]) -> list[bool] | None:
        """As `are_fenced`, on the connections of the running event loop."""
        keys = with_clock((self._keys.fence, self._keys.fences))
        words = [str(word).encode() for word in ("EVALSHA", _FENCED.sha, len(keys), *keys)]
        packed = bulk_strings((*words, *tags))
        command = b"*%d\r\n%b" % (len(words) + len(tags), packed)
        return _truths(await pool.call(command, _FENCED.text))

    def cost(self) -> int:
        """Return about how many records a search looks at; a batch counts as a hundred."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.hgetall(self._keys.counts)
        for lane in map(self._keys.lane, LANES):
            pipeline.llen(lane.waiting)
            pipeline.zcard(lane.leases)
        counts: dict[bytes, bytes]
        sizes: list[int]
        counts, *sizes = pipeline.execute()
        held = (f"{lane}:{place}" for lane in LANES for place in ("scheduled", "leased", "dead"))
        stored = sum(int(counts.get(field.encode(), 0)) for field in held)
        return stored + sum(sizes[::2]) + 100 * sum(sizes[1::2])

    def search(self, tags: Sequence[bytes]) -> Iterator[list[FoundEvent]]:
        """Yield the events of these tags, in one list for each step of the search.

        Places: `<lane>:scheduled`, `<lane>:waiting`, `<lane>:batches` and `<lane>:dead`, in the
        order in which an event moves.
        """
        for lane in LANES:
            keys = (self._keys.lane(lane).scheduled,)
            yield from self._found(f"{lane}:scheduled", "scheduled", keys, tags)
        for lane in LANES:
            yield from self._found(
                f"{lane}:waiting", "list", (self._keys.lane(lane).waiting,), tags
            )
        for lane in LANES:
            of_lane = self._keys.lane(lane)
            for batch in map(bytes.decode, self._redis.zrange(of_lane.leases, 0, -1)):
                yield from self._found(f"{lane}:batches", "list", (of_lane.records(batch),), tags)
        yield from self._found("dead", "dead", (self._keys.dead, self._keys.dead_at), tags)

    def _found(
        self, place: str, kind: str, keys: tuple[str, ...], tags: Sequence[bytes]
    ) -> Iterator[list[FoundEvent]]:
        last = b""
        while True:
            last, *pairs = _RECORDS(self._redis, keys, (kind, last, STEP, *tags))
            yield [
                FoundEvent(_place(place, letter), record[HEADER_BYTES:])
                for letter, record in zip(pairs[::2], pairs[1::2], strict=True)
            ]
            if not last:
                return


def _place(place: str, letter: bytes) -> str:
    """Return the place of a record; that of a dead letter is in the letter's id."""
    return f"{letter.partition(b':')[0].decode()}:dead" if letter else place


def _truths(reply: list[int]) -> list[bool] | None:
    return [bool(one) for one in reply] or None
