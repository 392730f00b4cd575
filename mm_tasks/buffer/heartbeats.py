"""Heartbeats: when each worker and each beat was last seen, on the project's clock.

Each process writes a heartbeat every few seconds and deletes it on shutdown. So an old
heartbeat belongs to a process that hangs, is cut off or was killed. After a day it is
removed. `tasks.heartbeat_writer` writes them, and `monitoring.health` judges their age.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

Kind = Literal["worker", "beat"]

KEPT_MS = 86_400_000
_WRITE = Script("heartbeat_write")


class Heartbeat(NamedTuple):
    """The last heartbeat of a process; `name` is a worker's node name or a beat's host."""

    kind: Kind
    name: str
    age_s: float
    queues: tuple[str, ...]


def write(  # noqa: PLR0913 - what a heartbeat says
    redis: Redis,
    project: str,
    kind: Kind,
    name: str,
    queues: Iterable[str] = (),
    *,
    elapsed_s: float | None = None,
) -> None:
    """Write the heartbeat of a process; remove heartbeats older than a day.

    `elapsed_s` is the time since its last one, by its monotonic clock: it shows where Redis's
    clock stepped forward.
    """
    elapsed_ms = "" if elapsed_s is None else round(1000 * elapsed_s)
    args = (f"{kind}:{name}", ",".join(queues), KEPT_MS, elapsed_ms)
    _WRITE(redis, [ProjectKeys(project).heartbeats], args)


def delete(redis: Redis, project: str, kind: Kind, name: str) -> None:
    """Delete the heartbeat of a process that shuts down."""
    redis.hdel(ProjectKeys(project).heartbeats, f"{kind}:{name}")


def read(redis: Redis, project: str) -> dict[str, Heartbeat]:
    """Return all heartbeats by `<kind>:<name>`; write nothing."""
    stored: Any = redis.hgetall(ProjectKeys(project).heartbeats)
    now_ms = clock.read(redis, project).now_ms
    heartbeats = {}
    for id_, text in stored.items():
        kind, _, name = id_.decode().partition(":")
        written_ms, _, queues = text.decode().partition(" ")
        age_s = max(0, now_ms - int(written_ms)) / 1000
        queues = tuple(queues.split(",")) if queues else ()
        heartbeats[id_.decode()] = Heartbeat(kind, name, age_s, queues)
    return heartbeats


def refuse_if_unwritable(redis: Redis, project: str) -> None:
    """Raise redis-py's error when this server takes no writes; write nothing.

    Such a server is a replica, is loading, is full, or could not save to its disk.
    """
    redis.set(ProjectKeys(project).void, "", xx=True)
