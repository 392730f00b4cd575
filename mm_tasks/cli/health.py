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

    from mm_tasks.monitoring.health import Finding
    from mm_tasks.runtime import Runtime


def run(worker: str | None, *, beat: bool, age_max_s: float, as_json: bool) -> int:
    """Print a line for each finding; return 0 if all are well, otherwise 1."""
    findings = list(_findings(runtime.current(), worker, beat=beat, age_max_s=age_max_s))
    is_healthy = all(finding.is_well for finding in findings)
    if as_json:
        checks = [{"what": f.what, "ok": f.is_well, "why": f.words} for f in findings]
        typer.echo(json.dumps({"healthy": is_healthy, "checks": checks}))
    else:
        for finding in findings:
            typer.echo(
                f"{'ok' if finding.is_well else 'problem':8} {finding.what}: {finding.words}"
            )
    return 0 if is_healthy else 1


def _findings(
    current: Runtime, worker: str | None, *, beat: bool, age_max_s: float
) -> Iterator[Finding]:
    redis, project = current.worker_redis, current.settings.project
    is_all = worker is None and not beat
    try:
        found = heartbeats.read(redis, project)
    except RedisError as error:
        # And not asked for more: a server that hangs would hold up the probe once again.
        yield health.away(error)
    else:
        if worker is not None:
            yield health.worker(found, worker, age_max_s)
        if is_all:
            yield from health.queues(found, age_max_s)
        if beat or is_all:
            yield health.beat(found, age_max_s)
        if is_all:
            yield health.writable(redis, project)
    if is_all and current.settings.audit_url is not None:
        yield health.database(partial(_reach, current))


def _reach(current: Runtime) -> bool:
    return current.audit_log.database.reach()
