"""The failures of the checkpoint hook, of all processes of a project, as Redis counts them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from mm_tasks.buffer import clock
from mm_tasks.buffer.keys import ProjectKeys

if TYPE_CHECKING:
    from redis import Redis


class HookFailures(NamedTuple):
    """The number of failures so far, and the time of the last one, by Redis's clock."""

    total: int = 0
    last_at: datetime | None = None


def note(redis: Redis, project: str) -> None:
    """Count a failure. Raises Redis's errors."""
    now_ms = clock.read(redis, project).now_ms
    key = ProjectKeys(project).audit
    pipeline = redis.pipeline(transaction=True)
    pipeline.hincrby(key, "hook_failures", 1)
    pipeline.hset(key, "hook_failed_ms", str(now_ms))
    pipeline.execute()


def read(redis: Redis, project: str) -> HookFailures:
    """Return the failures. Raises Redis's errors."""
    stored: Any = redis.hgetall(ProjectKeys(project).audit)
    if b"hook_failures" not in stored:
        return HookFailures()
    last_s = clock.read(redis, project).shown_s(int(stored[b"hook_failed_ms"]))
    return HookFailures(int(stored[b"hook_failures"]), datetime.fromtimestamp(last_s, UTC))
