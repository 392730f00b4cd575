"""What must be true before anything is sent: one verdict for each thing looked at.

`mm-tasks check` prints them all; a worker refuses to start on any problem. A
sentence names the variable and the rule, never a secret.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from redis.exceptions import RedisError

from mm_tasks.client import vendor_access
from mm_tasks.errors import ConfigurationError
from mm_tasks.limiter import SLOT_VALID_MS
from mm_tasks.limits import VENDOR_BATCH_BURST, VENDOR_BATCH_RATE_PER_S

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from mm_tasks.settings import Settings

REDIS_MIN = (6, 2)
CLOCK_SKEW_MAX_S = 1.0
# Celery's queues and the rest need room as well: at maxmemory nothing is published.
MEMORY_SHARE_MAX = 0.6


class Verdict(NamedTuple):
    """What was looked at, how it is, and a sentence that says so."""

    what: str
    state: Literal["ok", "warning", "problem"]
    sentence: str


def start(redis: Redis, settings: Settings) -> list[Verdict]:
    """Return what a worker looks at before it starts. It waits for a Redis that is away."""
    found = server(redis, settings)
    return [*vendor(settings), *(verdict for verdict in found if verdict.what != "Redis")]


def vendor(settings: Settings) -> Iterator[Verdict]:
    """Yield verdicts on key, host and rate, from the settings alone."""
    try:
        vendor_access(settings.millimetric_host, settings.millimetric_key)
    except ConfigurationError as error:
        yield Verdict("key and host", "problem", str(error))
    else:
        yield Verdict("key and host", "ok", "a secret key, and a host that keeps it secret")
    rate, burst = settings.batch_rate_per_s, settings.batch_burst
    burst_max = VENDOR_BATCH_BURST - VENDOR_BATCH_RATE_PER_S * SLOT_VALID_MS / 1000
    if rate > VENDOR_BATCH_RATE_PER_S or burst > burst_max:
        said = f"above what the vendor allows ({VENDOR_BATCH_RATE_PER_S} a second, burst "
        yield Verdict("rate", "warning", f"{said}{burst_max:.0f}): it will answer 429")
    else:
        yield Verdict("rate", "ok", "within what the vendor allows")


def server(redis: Redis, settings: Settings) -> Iterator[Verdict]:
    """Yield verdicts on the buffer's Redis; one problem alone when it does not answer."""
    try:
        before = time.time()
        seconds, micros = redis.time()
        after = time.time()
        info: dict[str, Any] = redis.info()
    except RedisError as error:
        said = f"MM_TASKS_REDIS_URL: Redis does not answer ({type(error).__name__})"
        yield Verdict("Redis", "problem", said)
        return
    yield _version(info)
    yield _eviction(info)
    yield _memory(info, settings.buffer_bytes_max)
    yield _persistence(info)
    skew_s = max(before - seconds - micros / 1e6, seconds + micros / 1e6 - after, 0.0)
    yield _clock(skew_s)


def _version(info: dict[str, Any]) -> Verdict:
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < REDIS_MIN:
        return Verdict("version", "problem", f"Redis is {version}; 6.2 or newer is needed")
    fork = info.get("valkey_version")
    return Verdict("version", "ok", f"Valkey {fork}" if fork else f"Redis {version}")


def _eviction(info: dict[str, Any]) -> Verdict:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        said = f"Redis drops keys when it is full ({policy}); set maxmemory-policy noeviction"
        return Verdict("eviction", "problem", said)
    return Verdict("eviction", "ok", "noeviction: a full Redis refuses, and drops nothing")


def _memory(info: dict[str, Any], buffer_bytes_max: int) -> Verdict:
    memory = int(info.get("maxmemory", 0))
    if memory and buffer_bytes_max > MEMORY_SHARE_MAX * memory:
        rule = f"must be at most {MEMORY_SHARE_MAX:.0%} of Redis's maxmemory ({memory} bytes)"
        return Verdict("memory", "problem", f"MM_TASKS_BUFFER_BYTES_MAX: {rule}")
    return Verdict("memory", "ok", f"the buffer may hold {buffer_bytes_max:,} bytes")


def _persistence(info: dict[str, Any]) -> Verdict:
    if not info.get("aof_enabled"):
        return Verdict("AOF", "warning", "is off: a restart of Redis loses what is waiting")
    return Verdict("AOF", "ok", "on: what was accepted survives a restart")


def _clock(skew_s: float) -> Verdict:
    if skew_s > CLOCK_SKEW_MAX_S:
        said = f"differs from Redis's by {skew_s:.1f} s; the timestamps of events are this one's"
        return Verdict("clock", "warning", said)
    return Verdict("clock", "ok", "agrees with Redis's")
