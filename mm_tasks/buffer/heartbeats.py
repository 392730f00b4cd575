"""Signs of life: when each worker and each beat was last seen, on Redis's clock.

Whoever is alive leaves one every few seconds, and takes it back when it is told to stop.
So an old sign is of something that hangs, is cut off or was killed; after a day it is
forgotten. See `pulse` for who leaves them, and `health` for what follows from their age.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

Kind = Literal["worker", "beat"]

KEPT_MS = 86_400_000
_SIGN, _SIGNS = Script("heartbeat_write"), Script("heartbeat_read")


class Heartbeat(NamedTuple):
    """What one of them left: a worker is known by its node name, a beat by its host."""

    kind: Kind
    name: str
    age_s: float
    queues: tuple[str, ...]


def leave(redis: Redis, project: str, kind: Kind, name: str, queues: Iterable[str] = ()) -> None:
    """Say that it is alive now; forget the signs of more than a day ago."""
    _SIGN(redis, [ProjectKeys(project).heartbeats], [f"{kind}:{name}", ",".join(queues), KEPT_MS])


def withdraw(redis: Redis, project: str, kind: Kind, name: str) -> None:
    """Forget its sign: it ends because it was told to."""
    redis.hdel(ProjectKeys(project).heartbeats, f"{kind}:{name}")


def read(redis: Redis, project: str) -> dict[str, Heartbeat]:
    """Return all signs by `<kind>:<name>`, from one look that changes nothing."""
    now_us, flat = _SIGNS(redis, [ProjectKeys(project).heartbeats], [])
    pairs = zip(flat[::2], flat[1::2], strict=True)
    return {who.decode(): _sign(who.decode(), text.decode(), int(now_us)) for who, text in pairs}


def refuse_if_unwritable(redis: Redis, project: str) -> None:
    """Raise what redis-py raises where this server takes no writes; write nothing.

    A replica, a server that loads, is full, or may not write because it could not save.
    """
    redis.set(ProjectKeys(project).void, "", xx=True)


def _sign(who: str, text: str, now_us: int) -> Heartbeat:
    kind, _, name = who.partition(":")
    left_ms, _, queues = text.partition(" ")
    age_s = max(0.0, (now_us / 1000 - int(left_ms)) / 1000)
    known: Any = kind  # only `leave` writes it
    return Heartbeat(known, name, age_s, tuple(queues.split(",")) if queues else ())
