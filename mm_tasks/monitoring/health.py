"""Whether workers, beat, Redis and the audit database are alive: a `Check` for each.

Workers and beat are alive if their heartbeats are recent (`buffer/heartbeats`). Nothing is
sent to a worker. `checks` makes the same `Check` of a configuration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

from redis.exceptions import RedisError

from mm_tasks.buffer import heartbeats
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.events.lanes import queue_names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from redis import Redis

    from mm_tasks.buffer.audit_state import AuditFindings
    from mm_tasks.buffer.heartbeats import Heartbeat, Publisher

AGE_MAX_S = 30.0
# The kinds of findings about the audit log, in the metric `mm_tasks_audit_problem`.
AUDIT_KINDS = (
    *("audit_log_broken", "audit_log_cut", "audit_log_forked"),
    *("guards_missing", "hook_failed", "not_verified"),
)
# A run a day, and one that was missed.
VERIFIED_MAX_S = 172_800.0
# A process notes a publish at most every 30 s. After this time without one it is forgotten.
_PUBLISHED_MAX_S = 300.0


class Check(NamedTuple):
    """A checked part, its state, and the sentence that explains the state."""

    name: str
    state: Literal["ok", "warning", "problem"]
    sentence: str

    @property
    def is_ok(self) -> bool:
        """Return whether the state is neither a warning nor a problem."""
        return self.state == "ok"


def worker(found: Mapping[str, Heartbeat], name: str, age_max_s: float) -> Check:
    """Return whether this worker is alive."""
    return _recent(f"worker {name}", found.get(f"worker:{name}"), age_max_s)


def queues(found: Mapping[str, Heartbeat], project: str, age_max_s: float) -> Iterator[Check]:
    """Yield for each queue of the project whether a live worker serves it."""
    for queue in queue_names(project):
        serving = [heartbeat for heartbeat in found.values() if queue in heartbeat.queues]
        alive = sorted(h.name for h in serving if h.age_s <= age_max_s)
        silent = ", ".join(f"{h.name} is silent for {h.age_s:.0f} s" for h in serving)
        if alive:
            yield Check(queue, "ok", f"served by {', '.join(alive)}")
        else:
            yield Check(queue, "problem", f"no worker serves it{': ' if silent else ''}{silent}")


def serves_no_worker(found: Mapping[str, Heartbeat], broker: str) -> bool:
    """Return whether it is certain that no live worker has this broker.

    It is not while there is no worker, or one of a release that does not write its broker.
    """
    brokers = {h.broker for h in found.values() if h.kind == "worker" and h.age_s <= AGE_MAX_S}
    return bool(brokers) and not brokers & {"", broker}


def publishers(found: Mapping[str, Heartbeat], published: Iterable[Publisher]) -> Iterator[Check]:
    """Yield a warning for each process that publishes where no worker listens."""
    for publisher in published:
        if publisher.age_s <= _PUBLISHED_MAX_S and serves_no_worker(found, publisher.broker):
            sentence = (
                f"{publisher.age_s:.0f} s ago a process on {publisher.host} published to a broker "
                "that no worker of this project serves: it uses another app or another URL"
            )
            yield Check("broker", "warning", sentence)


def addresses(redis: Redis, project: str) -> Iterator[Check]:
    """Yield a line for each publisher whose broker no worker serves, and one for other projects.

    Yields nothing where Redis does not answer.
    """
    try:
        found = heartbeats.read(redis, project)
        yield from publishers(found, heartbeats.read_publishers(redis, project))
        others = ", ".join(heartbeats.other_projects(redis, project))
    except RedisError:
        return
    if others:
        yield Check("projects", "ok", f"on this server too: {others}; see docs/projects.md")


def audit(findings: AuditFindings) -> Iterator[Check]:
    """Yield a problem for each finding about the audit log, and otherwise its verification."""
    problems = audit_problems(findings)
    yield from (Check("audit log", "problem", sentence) for sentence in problems.values())
    age_s = findings.verified_age_s
    if not problems and age_s is not None:
        size = findings.verified_size
        yield Check("audit log", "ok", f"verified {age_s / 3600:,.0f} h ago: {size:,} entries")


def audit_problems(findings: AuditFindings) -> dict[str, str]:
    """Return a sentence for each finding about the audit log, by its kind, one of `AUDIT_KINDS`."""
    problems = {}
    for host, reason in findings.differing.items():
        sentence = f"{reason}: it lacks entries, as {host} found; no fence is lowered"
        problems[reason] = f"{sentence}; see mm-tasks audit adopt"
    if findings.broken:
        problems["audit_log_broken"] = f"does not verify: {findings.broken}"
    if findings.guards_missing:
        problems["guards_missing"] = f"guards are missing: {findings.guards_missing}"
    if findings.has_hook_failed:
        sentence = "the checkpoint hook failed within the last day"
        problems["hook_failed"] = f"{sentence}; mend it, then mm-tasks audit checkpoint"
    age_s = findings.verified_age_s
    if age_s is not None and age_s > VERIFIED_MAX_S:
        problems["not_verified"] = f"was not verified for {age_s / 86_400:,.1f} days"
    return problems


def beat(found: Mapping[str, Heartbeat], age_max_s: float) -> Check:
    """Return whether any beat is alive. One is enough; several do no harm."""
    beats = [heartbeat for heartbeat in found.values() if heartbeat.kind == "beat"]
    newest = min(beats, key=lambda heartbeat: heartbeat.age_s, default=None)
    return _recent("beat", newest, age_max_s)


def writable(redis: Redis, project: str) -> Check:
    """Return whether Redis takes writes, without a write."""
    try:
        heartbeats.refuse_if_unwritable(redis, project)
    except RedisError as error:
        return unavailable(error)
    return Check("Redis", "ok", "takes writes")


def database(reach: Callable[[], bool]) -> Check:
    """Return whether the audit database answers; `reach` is `Database.reach`."""
    try:
        exists = reach()
    except (AuditUnavailable, ConfigurationError) as error:
        return Check("audit database", "problem", str(error))
    return Check("audit database", "ok", "answers" if exists else "does not exist yet")


def unavailable(error: RedisError) -> Check:
    """Return the problem of a Redis that raised an error; only the error's type is shown."""
    sentence = f"does not answer, or takes no writes ({type(error).__name__})"
    return Check("Redis", "problem", sentence)


def _recent(name: str, heartbeat: Heartbeat | None, age_max_s: float) -> Check:
    if heartbeat is None:
        return Check(name, "problem", "has no heartbeat")
    host = f" of {heartbeat.name}" if heartbeat.kind == "beat" else ""
    sentence = f"last heartbeat {heartbeat.age_s:.0f} s ago{host}"
    if heartbeat.age_s > age_max_s:
        return Check(name, "problem", f"is silent: {sentence}")
    return Check(name, "ok", sentence)
