"""`mm-tasks health`: for probes of containers, of systemd, of load balancers."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING

import typer
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.monitoring import health

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mm_tasks.monitoring.health import Check
    from mm_tasks.runtime import Runtime


def run(worker: str | None, *, beat: bool, age_max_s: float, as_json: bool) -> int:
    """Print a line for each check; return 0 if all are ok, otherwise 1."""
    checks = list(_checks(runtime.current(), worker, beat=beat, age_max_s=age_max_s))
    is_healthy = all(check.is_ok for check in checks)
    if as_json:
        rows = [{"what": c.name, "ok": c.is_ok, "why": c.sentence} for c in checks]
        typer.echo(json.dumps({"healthy": is_healthy, "checks": rows}))
    else:
        for name, state, sentence in checks:
            typer.echo(f"{state:8} {name}: {sentence}")
    return 0 if is_healthy else 1


def _checks(
    current: Runtime, worker: str | None, *, beat: bool, age_max_s: float
) -> Iterator[Check]:
    redis, project = current.worker_redis, current.settings.project
    is_all = worker is None and not beat
    try:
        found = heartbeats.read(redis, project)
        findings = current.audit_state.read()
    except RedisError as error:
        # No further command: a server that hangs would delay the probe again.
        yield health.unavailable(error)
    else:
        if worker is not None:
            yield health.worker(found, worker, age_max_s)
        if is_all:
            yield from health.queues(found, project, age_max_s)
        if beat or is_all:
            yield health.beat(found, age_max_s)
        if is_all:
            yield health.writable(redis, project)
            yield from health.addresses(redis, project)
            yield from health.audit(findings)
    if is_all and current.settings.audit_url is not None:
        yield health.database(partial(_reach, current))


def _reach(current: Runtime) -> bool:
    # `audit_store` raises for a refused setting, which is a problem of this check.
    return current.audit_store.log.database.reach()
