"""`mm-tasks health`: for probes of containers, services and load balancers."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import typer
from redis.exceptions import RedisError

from mm_tasks import health, runtime, signs

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mm_tasks.preflight import Verdict
    from mm_tasks.runtime import Runtime

QUEUES = ("mm.forget", "mm.deliver", "mm.identify")


def run(*, worker: str | None, beat: bool, age_max_s: float, as_json: bool) -> int:
    """Print a line for each thing looked at; return 1 if any is a problem, otherwise 0."""
    found = list(_verdicts(runtime.current(), worker, beat=beat, age_max_s=age_max_s))
    is_well = all(verdict.state == "ok" for verdict in found)
    if as_json:
        looked = [{"what": v.what, "ok": v.state == "ok", "why": v.sentence} for v in found]
        typer.echo(json.dumps({"ok": is_well, "found": looked}))
    else:
        for verdict in found:
            typer.echo(f"{verdict.state:8} {verdict.what}: {verdict.sentence}")
    return 0 if is_well else 1


def _verdicts(
    current: Runtime, worker: str | None, *, beat: bool, age_max_s: float
) -> Iterator[Verdict]:
    redis, project = current.quick_redis, current.settings.project
    is_all = worker is None and not beat
    answers = health.redis(redis)
    yield answers
    if is_all:
        yield health.audit(current)
    try:
        left = signs.read(redis, project)
    except RedisError:
        return
    if worker is not None:
        yield health.worker(left, worker.replace("%h", socket.gethostname()), age_max_s)
    if is_all:
        yield from health.queues(left, QUEUES, age_max_s)
    if is_all or beat:
        yield health.beat(left, age_max_s)
