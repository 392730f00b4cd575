"""Heartbeats: when each worker and each beat was last seen, on the project's clock.

Each process writes a heartbeat every few seconds and deletes it on shutdown. So an old
heartbeat belongs to a process that hangs, is cut off or was killed. After a day it is
removed. `tasks.heartbeat_writer` writes them, and `monitoring.health` judges their age.

Processes that publish write when and to which broker they did, so that a broker which no worker
serves is found. A broker is known by a fingerprint of its address: see `tasks/broker_address`.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from redis.exceptions import NoPermissionError

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import PROJECTS, ProjectKeys
from mm_tasks.buffer.scripts import Script

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from redis import Redis

Kind = Literal["worker", "beat"]

KEPT_MS = 86_400_000
_WRITE = Script("heartbeat_write")
_BROKER = "broker="


class Heartbeat(NamedTuple):
    """The last heartbeat of a process; `name` is a worker's node name or a beat's host.

    `broker` is the fingerprint of a worker's broker; '' of a worker of an earlier release.
    """

    kind: Kind
    name: str
    age_s: float
    queues: tuple[str, ...]
    broker: str = ""


class Publisher(NamedTuple):
    """The last publish to a broker, and the host of the process that published."""

    broker: str
    host: str
    age_s: float


def write(  # noqa: PLR0913 - what a heartbeat says
    redis: Redis,
    project: str,
    kind: Kind,
    name: str,
    queues: Iterable[str] = (),
    *,
    broker: str = "",
    elapsed_s: float | None = None,
) -> None:
    """Write the heartbeat of a process; remove heartbeats older than a day.

    `elapsed_s` is the time since its last one, by its monotonic clock: it shows where Redis's
    clock stepped forward. A worker's also says that its project uses this server.
    """
    # An earlier release takes the last word for one more queue.
    words = (*queues, _BROKER + broker) if broker else queues
    elapsed_ms = "" if elapsed_s is None else round(1000 * elapsed_s)
    key, id_ = ProjectKeys(project).heartbeats, f"{kind}:{name}"
    _note(redis, key, id_, ",".join(words), elapsed_ms)
    if kind == "worker":
        # A user of Redis may be restricted to the keys of its own project.
        with suppress(NoPermissionError):
            _note(redis, PROJECTS, project, "")


def delete(redis: Redis, project: str, kind: Kind, name: str) -> None:
    """Delete the heartbeat of a process that shuts down."""
    redis.hdel(ProjectKeys(project).heartbeats, f"{kind}:{name}")


def read(redis: Redis, project: str) -> dict[str, Heartbeat]:
    """Return all heartbeats by `<kind>:<name>`; write nothing."""
    heartbeats = {}
    for id_, age_s, text in _read(redis, project, ProjectKeys(project).heartbeats):
        kind, _, name = id_.partition(":")
        words = text.split(",") if text else []
        queues = tuple(word for word in words if not word.startswith(_BROKER))
        brokers = [word.removeprefix(_BROKER) for word in words if word.startswith(_BROKER)]
        heartbeats[id_] = Heartbeat(kind, name, age_s, queues, "".join(brokers))  # type: ignore[arg-type] # one of `Kind`
    return heartbeats


def write_publisher(redis: Redis, project: str, broker: str, host: str) -> None:
    """Write that a process of this host published to this broker just now."""
    _note(redis, ProjectKeys(project).publishers, broker, host)


def read_publishers(redis: Redis, project: str) -> list[Publisher]:
    """Return the last publish to each broker within a day; write nothing."""
    rows = _read(redis, project, ProjectKeys(project).publishers)
    return [Publisher(broker, host, age_s) for broker, age_s, host in rows]


def other_projects(redis: Redis, project: str) -> list[str]:
    """Return the other projects whose workers used this server within a day."""
    rows: list[tuple[str, float, str]] = []
    with suppress(NoPermissionError):
        rows += _read(redis, "", PROJECTS)
    return sorted(name for name, age_s, _ in rows if name != project and age_s <= KEPT_MS / 1000)


def count_unserved(redis: Redis, project: str, publishes: int) -> None:
    """Count publishes to a broker that no worker of this project serves."""
    redis.hincrby(ProjectKeys(project).counts, "unserved_publishes", publishes)


def count_foreign(redis: Redis, project: str) -> None:
    """Count a message of another project, which a worker put back."""
    redis.hincrby(ProjectKeys(project).counts, "foreign_messages", 1)


def _note(redis: Redis, key: str, id_: str, text: str, elapsed_ms: int | str = "") -> None:
    _WRITE(redis, [key], [id_, text, KEPT_MS, elapsed_ms])


def _read(redis: Redis, project: str, key: str) -> Iterator[tuple[str, float, str]]:
    """Yield the id, age and text of each row that `heartbeat_write` wrote."""
    stored: Any = redis.hgetall(key)
    now_ms = clock.read(redis, project).now_ms
    for id_, row in stored.items():
        written_ms, _, text = row.decode().partition(" ")
        yield id_.decode(), max(0, now_ms - int(written_ms)) / 1000, text


def refuse_if_unwritable(redis: Redis, project: str) -> None:
    """Raise redis-py's error when this server takes no writes; write nothing.

    Such a server is a replica, is loading, is full, or could not save to its disk.
    """
    redis.set(ProjectKeys(project).void, "", xx=True)
