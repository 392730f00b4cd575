"""`mm-tasks status`: the place of every event, the pause of sending, and the erasures.

Events are in Redis, erasures in the audit database. If the database does not answer, the
events are shown alone. The command creates nothing: no database, no key.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table

from mm_tasks import runtime
from mm_tasks.errors import AuditUnavailable, ConfigurationError
from mm_tasks.monitoring import checks, health, status
from mm_tasks.timestamps import stamp_s

if TYPE_CHECKING:
    from rich.console import Console

    from mm_tasks.erasure.models import ErasureDeadline


def run(out: Console, *, as_json: bool) -> None:
    """Print the status of the project, as tables or as JSON."""
    current = runtime.current()
    shown = status.read(current.worker_redis, current.settings.project)
    addresses = health.addresses(current.worker_redis, current.settings.project)
    audit = health.audit_problems(current.audit_state.read())
    shown["problems"] = [check.sentence for check in addresses if not check.is_ok]
    shown["problems"] += [f"audit log: {sentence}" for sentence in audit.values()]
    late: list[ErasureDeadline] = []
    why = ""
    try:
        shown["erasures"], known = current.audit_store.open_erasures()
        late = [deadline for deadline in known if deadline.mark]
    except (AuditUnavailable, ConfigurationError) as error:
        shown["erasures"], why = None, str(error)
    if as_json:
        typer.echo(json.dumps(shown))
        return
    table = Table("place", "events", title=f"project {shown['project']}")
    for place, number in shown["counts"].items():
        table.add_row(place, f"{number:,}")
    out.print(table)
    paused = shown["paused"]
    typer.echo(f"paused: {paused['reason']}" if paused else "not paused")
    if shown["next_due_s"] is not None:
        typer.echo(f"scheduled: the next event is due in {shown['next_due_s']:,.0f} s")
    if shown["left_out"]:
        typer.echo(f"dropped: {shown['left_out']:,} unusable fields of web requests")
    if shown["clock"]:
        stepped_s, at_s = shown["clock"].values()
        typer.echo(f"clock: Redis's clock stepped by {stepped_s:+,.0f} s at {stamp_s(at_s)}")
    for problem in shown["problems"]:
        typer.echo(f"problem: {problem}")
    if shown["counts"]["refused"]:
        typer.echo(_refused(shown))
    for line in (_fence(shown["fence"]), _summary(shown["erasures"], why), *map(_deadline, late)):
        typer.echo(line)


def _refused(shown: dict[str, Any]) -> str:
    reasons = ", ".join(f"{events:,} {reason}" for reason, events in shown["refused"].items())
    unanswered = shown["unanswered"]
    doubt = f"; {unanswered:,} may be stored, for Redis did not answer" if unanswered else ""
    return f"refused: {shown['counts']['refused']:,} events were not stored: {reasons}{doubt}"


def _fence(fence: dict[str, Any]) -> str:
    how = (
        "loaded"
        if fence["loaded"]
        else "not loaded for this server: nothing is sent until a worker loads it"
    )
    return f"fence: {fence['tags']:,} {'tag' if fence['tags'] == 1 else 'tags'}, {how}"


def _summary(summary: dict[str, Any] | None, why: str) -> str:
    if summary is None:
        return f"erasures: unknown: {why}"
    return f"erasures: {checks.in_words(summary)}"


def _deadline(late: ErasureDeadline) -> str:
    return (
        f"  {late.id} ({late.state}): {late.mark} % of its time is used up, "
        f"due {late.due_at:%Y-%m-%d %H:%M} UTC"
    )
