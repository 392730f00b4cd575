"""Checks of settings, Redis and the audit database before anything is sent.

`mm-tasks check` prints them all. A worker refuses to start on any problem except an
unavailable Redis or audit database, for which it waits. A sentence names the variable and
the rule, never a secret.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from mm_tasks.buffer import clock
from mm_tasks.buffer.rate_limiter import SLOT_VALID_MS
from mm_tasks.client.access import tls_context, vendor_access
from mm_tasks.erasure.audit import tables
from mm_tasks.erasure.audit.log import head
from mm_tasks.errors import AuditChainBroken, AuditUnavailable, ConfigurationError
from mm_tasks.events.limits import VENDOR_BATCH_BURST, VENDOR_BATCH_RATE_PER_S
from mm_tasks.monitoring import status
from mm_tasks.monitoring.health import Check
from mm_tasks.timestamps import stamp_s

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from mm_tasks.buffer.clock import ClockStep
    from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
    from mm_tasks.erasure.audit.log import AuditLog
    from mm_tasks.runtime import Runtime
    from mm_tasks.settings import Settings

REDIS_MIN = (6, 2)
CLOCK_SKEW_MAX_S = 1.0
# Celery's queues and the rest need room as well: at maxmemory nothing is published.
MEMORY_SHARE_MAX = 0.6
# A checkpoint follows its commit by an fsync.
PUBLISH_S = 0.5

_REDIS, _DATABASE = "Redis", "audit database"


def start(current: Runtime) -> list[Check]:
    """Return the checks of a worker's start, which waits for an unavailable store."""
    checks = [*vendor(current.settings), *server(current), store(current)]
    if all(check.state != "problem" for check in checks):
        log(current)  # The fence in Redis holds: a worker starts, and others see the finding.
    return [check for check in checks if check.name not in {_REDIS, _DATABASE}]


def vendor(settings: Settings) -> Iterator[Check]:
    """Yield the checks of key, host, trust and rate, from the settings alone."""
    try:
        vendor_access(settings.millimetric_host, settings.millimetric_key)
    except ConfigurationError as error:
        yield Check("key and host", "problem", str(error))
    else:
        yield Check("key and host", "ok", "a secret key, and a host that keeps it secret")
    try:
        tls_context(settings.ca_file)
    except ConfigurationError as error:
        yield Check("trust", "problem", str(error))
    else:
        trusted = "MM_TASKS_CA_FILE's" if settings.ca_file else "the system's, else certifi's"
        yield Check("trust", "ok", f"authorities for the vendor: {trusted}")
    rate, burst = settings.batch_rate_per_s, settings.batch_burst
    burst_max = VENDOR_BATCH_BURST - VENDOR_BATCH_RATE_PER_S * SLOT_VALID_MS / 1000
    if rate > VENDOR_BATCH_RATE_PER_S or burst > burst_max:
        limits = f"{VENDOR_BATCH_RATE_PER_S} a second, burst {burst_max:.0f}"
        yield Check("rate", "warning", f"above the vendor's limits ({limits}): expect 429s")
    else:
        yield Check("rate", "ok", "within the vendor's limits")


def server(current: Runtime) -> Iterator[Check]:
    """Yield the checks of the buffer's Redis; only one problem if it does not answer."""
    redis: Redis = current.worker_redis
    try:
        before = time.time()
        seconds, micros = redis.time()
        after = time.time()
        info: dict[str, Any] = redis.info()
    except RedisError as error:
        sentence = f"MM_TASKS_REDIS_URL: Redis does not answer ({type(error).__name__})"
        yield Check(_REDIS, "problem", sentence)
        return
    yield _version(info)
    yield _eviction(info)
    yield _memory(info, current.settings.buffer_bytes_max)
    yield _persistence(info)
    skew_s = max(before - seconds - micros / 1e6, seconds + micros / 1e6 - after, 0.0)
    yield _clock(skew_s)
    yield _steps(clock.read(redis, current.settings.project).step)


def _version(info: dict[str, Any]) -> Check:
    version = str(info["redis_version"])
    if tuple(map(int, version.split(".")[:2])) < REDIS_MIN:
        return Check("version", "problem", f"Redis is {version}; 6.2 or newer is needed")
    fork = info.get("valkey_version")
    return Check("version", "ok", f"Valkey {fork}" if fork else f"Redis {version}")


def _eviction(info: dict[str, Any]) -> Check:
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        rule = f"a full Redis drops keys ({policy}); set maxmemory-policy noeviction"
        return Check("eviction", "problem", rule)
    return Check("eviction", "ok", "noeviction: a full Redis refuses writes and drops nothing")


def _memory(info: dict[str, Any], buffer_bytes_max: int) -> Check:
    memory = int(info.get("maxmemory", 0))
    if memory and buffer_bytes_max > MEMORY_SHARE_MAX * memory:
        rule = f"must be at most {MEMORY_SHARE_MAX:.0%} of Redis's maxmemory ({memory} bytes)"
        return Check("memory", "problem", f"MM_TASKS_BUFFER_BYTES_MAX: {rule}")
    return Check("memory", "ok", f"the buffer may hold {buffer_bytes_max:,} bytes")


def _persistence(info: dict[str, Any]) -> Check:
    if not info.get("aof_enabled"):
        return Check("AOF", "warning", "is off: a restart of Redis loses the waiting events")
    return Check("AOF", "ok", "on: accepted events survive a restart of Redis")


def _clock(skew_s: float) -> Check:
    if skew_s > CLOCK_SKEW_MAX_S:
        sentence = f"differs from Redis's by {skew_s:.1f} s; events get timestamps of this host"
        return Check("clock", "warning", sentence)
    return Check("clock", "ok", "agrees with Redis's")


def _steps(step: ClockStep | None) -> Check:
    if step is None:
        return Check("clock of Redis", "ok", "no step was seen in the last day")
    sentence = f"stepped by {step.by_s:+,.0f} s at {stamp_s(step.at_s)}; nothing is lost"
    return Check("clock of Redis", "warning", sentence)


def store(current: Runtime) -> Check:
    """Return the check of the audit store; creates its tables if they do not exist."""
    try:
        store_id = current.audit_store.queries.store_id
        kind = "SQLite" if current.audit_store.log.database.is_sqlite else "PostgreSQL"
        current.fence_sync.check_store()
    except ConfigurationError as error:
        return Check("audit store", "problem", str(error))
    except AuditUnavailable as error:
        return _unavailable(error)
    except RedisError:
        pass  # The owner of its fences is checked again before any is added or loaded.
    return Check("audit store", "ok", f"{kind}, id {store_id}")


def log(current: Runtime) -> Check:
    """Return whether the log has all entries that Redis and this host saw; note it if not."""
    try:
        current.fence_sync.check_log()
    except AuditChainBroken as error:
        return Check("audit log", "problem", f"{error.reason}: {error}")
    except ConfigurationError as error:
        return Check("audit store", "problem", str(error))
    except AuditUnavailable as error:
        return _unavailable(error)
    except RedisError as error:
        sentence = f"could not be compared: Redis does not answer ({type(error).__name__})"
        return Check("audit log", "warning", sentence)
    return Check("audit log", "ok", "has all entries that Redis and this host saw")


def erasures(current: Runtime) -> Iterator[Check]:
    """Yield the checks of the audit store and its content; only one problem without it."""
    check = store(current)
    yield check
    if check.state == "problem":
        return
    try:
        yield _fence(current.worker_redis, current.settings.project)
        with current.audit_store.log.database.read() as connection:
            missing = tables.guards_missing(connection)
        yield _guards(missing)
        yield _checkpoints(current.audit_store.log)
        yield log(current)
        summary = current.audit_store.queries.summary()
        is_late = summary["overdue"] + summary["blocked"] > 0
        yield Check("erasures", "warning" if is_late else "ok", in_words(summary))
    except AuditUnavailable as error:
        yield _unavailable(error)


def _unavailable(error: AuditUnavailable) -> Check:
    sentence = f"MM_TASKS_AUDIT_URL: the audit database does not answer: {error}"
    return Check(_DATABASE, "problem", sentence)


def _fence(redis: Redis, project: str) -> Check:
    try:
        tags, is_loaded = status.read(redis, project)["fence"].values()
    except RedisError as error:
        return Check("fence", "warning", f"Redis does not answer ({type(error).__name__})")
    if is_loaded:
        return Check("fence", "ok", f"tags: {tags:,}, loaded for this server")
    sentence = f"tags: {tags:,}; not loaded for this server yet: a worker loads it before it sends"
    return Check("fence", "warning", sentence)


def _guards(missing: list[str]) -> Check:
    if missing:
        sentence = "missing, so that entries of the log can be changed: "
        return Check("audit guards", "warning", sentence + ", ".join(missing))
    return Check("audit guards", "ok", "the database refuses to change or remove entries")


def _checkpoints(log: AuditLog) -> Check:
    """Return whether the state directory has a checkpoint of the whole log."""
    # Read before the log: a checkpoint published later may cover entries that this read misses.
    newest = _newest(log.outside)
    with log.database.read() as connection:
        end = head(connection)
    is_same = newest is not None and (newest.size, newest.head) == (end.size, end.head)
    if newest is not None and newest.size >= end.size and not is_same:
        sentence = f"one covers {newest.size:,} entries that differ from the log's {end.size:,}"
        return Check("checkpoints", "problem", f"{sentence}; see mm-tasks audit verify")
    if end.size and not is_same:
        time.sleep(PUBLISH_S)
        newest = _newest(log.outside)
    size = 0 if newest is None else newest.size
    if size < end.size:
        sentence = f"the newest in the state directory covers {size:,} of {end.size:,} entries"
        why = "it could not be written, or another host has it"
        return Check("checkpoints", "warning", f"{sentence}: {why}; see mm-tasks audit checkpoint")
    return Check("checkpoints", "ok", f"the newest covers all {end.size:,} entries")


def _newest(outside: CheckpointSinks) -> Checkpoint | None:
    try:
        return max(outside.read(), default=None)
    except OSError:
        return None


def in_words(summary: dict[str, Any]) -> str:
    """Return the summary of all erasures as a sentence."""
    sentence = "{open:,} open, {overdue:,} overdue, {blocked:,} blocked".format(**summary)
    why = ", ".join(f"{state} {n:,}" for state, n in summary["blocked_reasons"].items())
    return f"{sentence} ({why})" if why else sentence
