"""The position of an import: a checkpoint in Redis, advanced by the script that stores rows.

An import has a name. Redis holds, for each name, the number of lines that are done and their
SHA-256. A chunk is appended only if the stored position equals its start; the same script
advances the position. So a chunk is stored once, however often it is sent, and two importers
of one name cannot repeat each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import Appended, Producer, Record
from mm_tasks.errors import ImportRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mm_tasks.connections.redis_client import RedisClient

_ELSEWHERE = -2
# The position was there already: the chunk is stored, by us or by another importer.
ALREADY_STORED = Appended(frozenset(), nudge=False)


class Position(NamedTuple):
    """The number of lines that are done, and their SHA-256 in hex."""

    lines: int
    digest: str

    def __str__(self) -> str:
        """Return the text that Redis holds."""
        return f"{self.lines} {self.digest}"

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Parse the text that Redis holds."""
        lines, digest = str(stored, "ascii").split()
        return cls(int(lines), digest)


class Step(NamedTuple):
    """The positions before and after one chunk; `before` is None for the first."""

    before: Position | None
    after: Position


class Positions:
    """The positions of one project. Holds a client, no state of its own."""

    def __init__(self, redis: RedisClient, project: str) -> None:
        """Take everything as arguments; nothing is opened here."""
        self._redis = redis
        self._key = ProjectKeys(project).imports

    def find(self, name: str) -> Position | None:
        """Return the position of an import, None if it is new; raises redis-py's errors."""
        stored: Any = self._redis.hget(self._key, name)
        return None if stored is None else Position.parse(stored)

    def append(
        self, producer: Producer, name: str, step: Step, entries: Sequence[Record]
    ) -> Appended:
        """Store entries as `Producer.append` does and advance the position, both or neither.

        Raises the same errors, and `ImportRefused` if the position is at neither end of the
        step. After `BufferUnavailable`, a second call stores the entries or finds them stored.
        """
        before = "" if step.before is None else step.before
        head = producer.append_head((self._key,), (name, before, step.after))
        reply = producer.call_append(self._redis.connection_pool, head, entries)
        if type(reply) is not list or reply[0] != _ELSEWHERE:
            return producer.appended(reply)
        if reply[1] == str(step.after).encode():
            return ALREADY_STORED
        msg = (
            "another import of this name moved it meanwhile, or Redis lost where it stood. "
            "Nothing is stored twice: run it again to go on"
        )
        raise ImportRefused(msg)
