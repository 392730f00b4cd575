"""Where an import stands, moved by the very script that stores its rows.

An import is known by a name. Redis holds, for each name, how many lines are done and the
SHA-256 of those lines. A part of an import is stored only where the import stands at the
part's beginning, and is moved to its end together with it. So a part is stored once,
however often it is asked for, and two importers of one name cannot repeat each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.producer import PackedConnection
from mm_tasks.errors import ImportRefused

if TYPE_CHECKING:
    from collections.abc import Sequence

    from redis import Redis

    from mm_tasks.buffer.producer import Appended, Producer, Record

_ELSEWHERE = -2


class Position(NamedTuple):
    """How many lines are done, and the SHA-256 of those lines in hex."""

    lines: int
    digest: str

    def __str__(self) -> str:
        """Return what Redis holds."""
        return f"{self.lines} {self.digest}"

    @classmethod
    def parse(cls, stored: bytes) -> Self:
        """Read what Redis holds."""
        lines, digest = str(stored, "ascii").split()
        return cls(int(lines), digest)


class Moved(NamedTuple):
    """The import stands there already: the part is stored, by us or by another importer."""


class Step(NamedTuple):
    """From where to where one part takes an import; `before` is None at the very first."""

    before: Position | None
    after: Position


class Positions:
    """The positions of one project. Holds a client, no state of its own."""

    def __init__(self, redis: Redis, project: str) -> None:
        """Take everything as arguments; nothing is opened here."""
        self._redis = redis
        self._key = ProjectKeys(project).imports
        self._connection = PackedConnection(redis)

    def find(self, name: str) -> Position | None:
        """Return where an import stands, None if there was none; raises what redis-py raises."""
        stored: Any = self._redis.hget(self._key, name)
        return None if stored is None else Position.parse(stored)

    def append(
        self, producer: Producer, name: str, step: Step, entries: Sequence[Record]
    ) -> Appended | Moved:
        """Store entries as `Producer.append` does and move the import, both or neither.

        Raises as that, and `ImportRefused` where the import stands at neither end of the
        step. After `BufferUnavailable`, asking again tells whether it was stored.
        """
        before = "" if step.before is None else step.before
        head = producer.append_head((self._key,), (name, before, step.after))
        reply = producer.call_append(self._connection, head, entries)
        if type(reply) is list and reply[0] == _ELSEWHERE:
            return _moved(reply[1], step)
        return producer.appended(reply)


def _moved(stands: bytes, step: Step) -> Moved:
    if stands == str(step.after).encode():
        return Moved()
    msg = (
        "another import of this name moved it meanwhile, or Redis lost where it stood. "
        "Nothing is stored twice: run it again to go on"
    )
    raise ImportRefused(msg)
