"""Whether all is alive: workers, beat, Redis, the audit database. One finding for each.

What is alive is known from `signs`; nothing is sent to a worker.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from redis.exceptions import RedisError

from mm_tasks.buffer import heartbeats
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.events.lanes import QUEUE_NAMES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from redis import Redis

    from mm_tasks.buffer.heartbeats import Heartbeat

AGE_MAX_S = 30.0


class Finding(NamedTuple):
    """What was looked at, whether it is well, and a few words that say so."""

    what: str
    is_well: bool
    words: str


def worker(found: Mapping[str, Heartbeat], name: str, age_max_s: float) -> Finding:
    """Return whether this worker is alive."""
    return _one(f"worker {name}", found.get(f"worker:{name}"), age_max_s)


def queues(found: Mapping[str, Heartbeat], age_max_s: float) -> Iterator[Finding]:
    """Yield for each of our queues whether a live worker serves it; name those that went silent."""
    for queue in QUEUE_NAMES:
        serving = [sign for sign in found.values() if queue in sign.queues]
        alive = [sign for sign in serving if sign.age_s <= age_max_s]
        if alive:
            yield Finding(queue, True, f"served by {_names(alive)}")
        elif serving:
            silent = ", ".join(f"{sign.name} is silent for {sign.age_s:.0f} s" for sign in serving)
            yield Finding(queue, False, f"nobody serves it: {silent}")
        else:
            yield Finding(queue, False, "nobody serves it")


def beat(found: Mapping[str, Heartbeat], age_max_s: float) -> Finding:
    """Return whether any beat ticked lately; several are harmless, and one is enough."""
    beats = [sign for sign in found.values() if sign.kind == "beat"]
    newest = min(beats, key=lambda sign: sign.age_s, default=None)
    return _one("beat", newest, age_max_s)


def writable(redis: Redis, project: str) -> Finding:
    """Return whether Redis takes writes, of which none is made."""
    try:
        heartbeats.refuse_if_unwritable(redis, project)
    except RedisError as error:
        return away(error)
    return Finding("Redis", True, "takes writes")


def database(look: Callable[[], bool]) -> Finding:
    """Return whether the audit database answers; `look` is `Database.reach`, or raises as it."""
    try:
        is_there = look()
    except (AuditUnavailable, ConfigurationError) as error:
        return Finding("audit database", False, str(error))
    return Finding("audit database", True, "answers" if is_there else "is not made yet")


def away(error: RedisError) -> Finding:
    """Return that Redis did not do what it was asked for: by the kind of its error alone."""
    return Finding("Redis", False, f"does not answer, or takes no writes ({type(error).__name__})")


def _one(what: str, sign: Heartbeat | None, age_max_s: float) -> Finding:
    if sign is None:
        return Finding(what, False, "left no sign of life")
    is_well = sign.age_s <= age_max_s
    of = f" of {sign.name}" if sign.kind == "beat" else ""
    seen = f"seen {sign.age_s:.0f} s ago{of}"
    return Finding(what, is_well, seen if is_well else f"is silent: {seen}")


def _names(alive: list[Heartbeat]) -> str:
    return ", ".join(sorted(sign.name for sign in alive))
