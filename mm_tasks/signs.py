"""Signs of life of workers and beats, in Redis, by Redis's clock.

A worker leaves one from the loop in which it takes messages, a beat from the publish of its
flush: see `pulse`. Whoever hangs, or lost its broker, goes silent. Names are those of nodes and
hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.keys import ProjectKeys
from mm_tasks.scripting import Script

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

WORKER, BEAT = "worker", "beat"
# How often one is left.
PERIOD_S = 5.0
# Longer than any holiday of a host would be of no use: names of containers do not come back.
_KEPT_MS = 86_400_000

_SIGN = Script("sign")


class Sign(NamedTuple):
    """The last one of a worker or a beat, `age_s` old; `queues` are those that it serves."""

    kind: str
    name: str
    age_s: float
    queues: frozenset[str]


def leave(redis: Redis, project: str, kind: str, name: str, queues: Iterable[str] = ()) -> None:
    """Leave one; raises what redis-py raises."""
    served = ",".join(sorted(queues))
    _SIGN(redis, (ProjectKeys(project).signs,), (f"{kind}:{name}", served, _KEPT_MS))


def read(redis: Redis, project: str) -> list[Sign]:
    """Return the last sign of each worker and beat of the last day; raises what redis-py raises."""
    seconds, micros = redis.time()
    now_ms = 1000 * seconds + micros / 1000
    found: Any = redis.hgetall(ProjectKeys(project).signs)
    return [_sign(field.decode(), value.decode(), now_ms) for field, value in found.items()]


def _sign(field: str, value: str, now_ms: float) -> Sign:
    kind, _, name = field.partition(":")
    at_ms, _, queues = value.partition(" ")
    age_s = max(0.0, now_ms - int(at_ms)) / 1000
    return Sign(kind, name, age_s, frozenset(filter(None, queues.split(","))))
