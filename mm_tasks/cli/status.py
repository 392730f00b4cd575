"""`mm-tasks status`: where every event is, why sending is paused, how the erasures are.

Events are in Redis, erasures in the audit database. Without the second the first is shown
all the same. Nothing is made by looking: no database, no key.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from mm_tasks import runtime
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.monitoring import checks, status

if TYPE_CHECKING:
    from rich.console import Console

    from mm_tasks.erasure.models import ErasureDeadline


def run(out: Console, *, as_json: bool) -> None:
    """Print the status of the project, for programs as JSON alone."""
    current = runtime.current()
    found = status.read(current.worker_redis, current.settings.project)
    late: list[ErasureDeadline] = []
    why = ""
    try:
        found["erasures"], known = current.look_at_erasures(datetime.now(UTC))
        late = [deadline for deadline in known if deadline.mark]
    except (AuditUnavailable, ConfigurationError) as error:
        found["erasures"], why = None, str(error)
    if as_json:
        typer.echo(json.dumps(found))
        return
    table = Table("place", "events", title=f"project {found['project']}")
    for place, number in found["counts"].items():
        table.add_row(place, f"{number:,}")
    out.print(table)
    paused = found["paused"]
    typer.echo(f"paused: {paused['reason']}" if paused else "not paused")
    if found["left_out"]:
        typer.echo(f"left out: {found['left_out']:,} unusable fields of web requests")
    for line in (_fence(found["fence"]), _summary(found["erasures"], why), *map(_deadline, late)):
        typer.echo(line)


def _fence(fence: dict[str, Any]) -> str:
    how = "loaded" if fence["loaded"] else "not loaded for this server: nothing is sent before"
    return f"fence: {fence['tags']:,} {'tag' if fence['tags'] == 1 else 'tags'}, {how}"


def _summary(found: dict[str, Any] | None, why: str) -> str:
    if found is None:
        return f"erasures: unknown: {why}"
    return f"erasures: {checks.in_words(found)}"


def _deadline(late: ErasureDeadline) -> str:
    return (
        f"  {late.id} ({late.state}): {late.mark} % of its time is used up, "
        f"due {late.due_at:%Y-%m-%d %H:%M} UTC"
    )
