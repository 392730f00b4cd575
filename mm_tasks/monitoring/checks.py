"""What must be true before anything is sent: one verdict for each thing looked at.

`mm-tasks check` prints them all; a worker refuses to start on any problem but that Redis
or the audit database is away, for which it waits. A sentence names the variable and the
rule, never a secret.
"""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from redis.exceptions import RedisError

from mm_tasks.buffer.rate_limiter import SLOT_VALID_MS
from mm_tasks.client.access import vendor_access
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.log import head
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.events.limits import VENDOR_BATCH_BURST, VENDOR_BATCH_RATE_PER_S
from mm_tasks.monitoring import status

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.erasure.fence_sync import FenceSync
    from mm_tasks.erasure.queries import ErasureQueries
    from mm_tasks.settings import Settings

REDIS_MIN = (6, 2)
CLOCK_SKEW_MAX_S = 1.0
# Celery's queues and the rest need room as well: at maxmemory nothing is published.
MEMORY_SHARE_MAX = 0.6
# A checkpoint follows its commit by an fsync.
PUBLISH_S = 0.5

# What a worker waits for.
_REDIS, _DATABASE = "Redis", "audit database"


class Verdict(NamedTuple):
    """What was looked at, how it is, and a sentence that says so."""

    what: str
    state: Literal["ok", "warning", "problem"]
    sentence: str


class Parts(Protocol):
    """What knows of erasures. Each raises `ConfigurationError` where it cannot be made."""

    @property
    def audit_log(self) -> AuditLog:
        """The log in its database."""

    @property
    def erasure_queries(self) -> ErasureQueries:
        """The state of erasures."""

    @property
    def fence_sync(self) -> FenceSync:
        """The fences in both places."""


def start(redis: Redis, settings: Settings, parts: Parts) -> list[Verdict]:
    """Return what a worker looks at before it starts. It waits for stores that are away."""
    found = [*vendor(settings), *server(redis, settings), store(parts)]
    return [verdict for verdict in found if verdict.what not in {_REDIS, _DATABASE}]


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
        yield Verdict(_REDIS, "problem", said)
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


def store(parts: Parts) -> Verdict:
    """Return the verdict on the audit store; makes its tables where they are missing."""
    try:
        store_id = parts.erasure_queries.store_id
        kind = "SQLite" if parts.audit_log.database.is_sqlite else "PostgreSQL"
        parts.fence_sync.check_store()
    except ConfigurationError as error:
        return Verdict("audit store", "problem", str(error))
    except AuditUnavailable as error:
        return _away(error)
    except RedisError:
        pass  # whose fences it has is looked at once more before any is raised or loaded
    return Verdict("audit store", "ok", f"{kind}, id {store_id}")


def erasures(redis: Redis, settings: Settings, parts: Parts) -> Iterator[Verdict]:
    """Yield verdicts on the audit store and what it says; one problem alone without it."""
    found = store(parts)
    yield found
    if found.state == "problem":
        return
    try:
        yield _fence(redis, settings.project)
        with parts.audit_log.database.read() as connection:
            missing = tables.guards_missing(connection)
        yield _guards(missing)
        yield _checkpoints(parts.audit_log)
        yield _open(parts.erasure_queries.summary(datetime.now(UTC)))
    except AuditUnavailable as error:
        yield _away(error)


def _away(error: AuditUnavailable) -> Verdict:
    said = f"MM_TASKS_AUDIT_URL: the audit database does not answer: {error}"
    return Verdict(_DATABASE, "problem", said)


def _fence(redis: Redis, project: str) -> Verdict:
    try:
        tags, is_loaded = status.read(redis, project)["fence"].values()
    except RedisError as error:
        return Verdict("fence", "warning", f"Redis does not answer ({type(error).__name__})")
    if not is_loaded:
        said = "not loaded for this server yet: a worker does it before anything is sent"
        return Verdict("fence", "warning", f"tags: {tags:,}; {said}")
    return Verdict("fence", "ok", f"tags: {tags:,}, loaded for this server")


def _guards(missing: list[str]) -> Verdict:
    if missing:
        said = "gone, so that entries of the log can be changed: "
        return Verdict("audit guards", "warning", said + ", ".join(missing))
    return Verdict("audit guards", "ok", "the database refuses to change or remove entries")


def _checkpoints(log: AuditLog) -> Verdict:
    """Return whether the state directory has a checkpoint of the log as it is."""
    # Read before the log: what is published later may be of entries this moment lacks.
    newest = _newest(log.outside)
    with log.database.read() as connection:
        end = head(connection)
    if newest is not None and (newest.size, newest.head) == (end.size, end.head):
        return Verdict("checkpoints", "ok", f"the newest is of all {end.size:,} entries")
    if newest is not None and newest.size >= end.size:
        said = f"one saw {newest.size:,} entries that the log ({end.size:,}) has not as they were"
        return Verdict("checkpoints", "problem", f"{said}; see mm-tasks audit verify")
    if end.size:
        time.sleep(PUBLISH_S)
        newest = _newest(log.outside)
    seen = 0 if newest is None else newest.size
    if seen < end.size:
        said = f"the newest in the state directory is of {seen:,} entries, the log has {end.size:,}"
        why = "it could not be written, or another host has it"
        return Verdict("checkpoints", "warning", f"{said}: {why}; see mm-tasks audit checkpoint")
    return Verdict("checkpoints", "ok", f"the newest is of all {end.size:,} entries")


def _newest(outside: CheckpointSinks) -> Checkpoint | None:
    try:
        return max(outside.read(), default=None)
    except OSError:
        return None


def _open(summary: dict[str, Any]) -> Verdict:
    state: Literal["ok", "warning"] = "warning" if summary["overdue"] + summary["blocked"] else "ok"
    return Verdict("erasures", state, in_words(summary))


def in_words(summary: dict[str, Any]) -> str:
    """Return what `ErasureQueries.summary` says, for people."""
    said = "{open:,} open, {overdue:,} overdue, {blocked:,} blocked".format(**summary)
    why = ", ".join(f"{state} {n:,}" for state, n in summary["blocked_reasons"].items())
    return f"{said} ({why})" if why else said
