"""Is it alive? Verdicts for probes, from what the stores say, in a moment and without Celery.

A worker and a beat are alive when they left a sign lately: see `signs`. Nothing is made by
asking: no database, no table, no key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError

from mm_tasks import signs
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.preflight import Verdict

if TYPE_CHECKING:
    from collections.abc import Collection

    from redis import Redis

    from mm_tasks.runtime import Runtime
    from mm_tasks.signs import Sign

# Several times the period of signs: one that a busy machine delays is no alarm.
AGE_MAX_S = 30.0


def redis(client: Redis) -> Verdict:
    """Say whether Redis answers, has loaded what it keeps, and takes writes."""
    try:
        info: dict[str, Any] = client.info("replication")
    except RedisError as error:
        return Verdict("Redis", "problem", f"does not answer ({type(error).__name__})")
    if info.get("role") != "master":
        return Verdict("Redis", "problem", "is a replica, which takes no writes")
    return Verdict("Redis", "ok", "answers and takes writes")


def audit(current: Runtime) -> Verdict:
    """Say whether the audit database answers, where there is one by now."""
    what = "audit database"
    try:
        database = current.audit_log.database
        if database.is_missing:
            return Verdict(what, "ok", "is not there yet: the first erasure makes it")
        database.ping()
    except (AuditUnavailable, ConfigurationError) as error:
        return Verdict(what, "problem", str(error))
    return Verdict(what, "ok", "answers")


def worker(found: Collection[Sign], name: str, age_max_s: float = AGE_MAX_S) -> Verdict:
    """Say whether the worker of this node name left a sign lately."""
    mine = [sign for sign in found if sign.kind == signs.WORKER and sign.name == name]
    return _alive(f"worker {name}", mine, age_max_s)


def queues(
    found: Collection[Sign], needed: Collection[str], age_max_s: float = AGE_MAX_S
) -> list[Verdict]:
    """Say of each queue whether a worker that serves it left a sign lately."""
    workers = [sign for sign in found if sign.kind == signs.WORKER]
    return [
        _alive(f"workers of {queue}", [s for s in workers if queue in s.queues], age_max_s)
        for queue in needed
    ]


def beat(found: Collection[Sign], age_max_s: float = AGE_MAX_S) -> Verdict:
    """Say whether any beat ticked lately."""
    return _alive("beat", [sign for sign in found if sign.kind == signs.BEAT], age_max_s)


def _alive(what: str, mine: list[Sign], age_max_s: float) -> Verdict:
    if not mine:
        return Verdict(what, "problem", "no sign of life within a day")
    lively = [sign for sign in mine if sign.age_s <= age_max_s]
    last = min(sign.age_s for sign in mine)
    if not lively:
        return Verdict(what, "problem", f"the last sign of life is {last:.0f} s old")
    return Verdict(what, "ok", f"{len(lively)} alive, the last sign is {last:.0f} s old")
