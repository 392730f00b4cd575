"""`mm-tasks audit adopt --restored`: go on with an audit log that lost entries.

Leads through the runbook of docs/erasure.md, "After the audit database was restored".
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.cli.output import fail
from mm_tasks.monitoring.health import AGE_MAX_S

if TYPE_CHECKING:
    from mm_tasks.erasure.adoption import Adopted, Loss
    from mm_tasks.runtime import Runtime

_NEXT = """Next:
1. On each other host: mv checkpoints checkpoints.{word} in its state directory, with a note of
   what was restored, from when, why, by whom.
2. Request again, from your tickets, each erasure received since the backup, with --received-at.
3. Cancel again each erasure that was cancelled since the backup, lift again each that was lifted.
4. mm-tasks audit verify, then start beat and the workers."""


def run(
    *,
    restored: Annotated[
        bool, typer.Option("--restored", help="A backup was put back, or the database failed over.")
    ] = False,
    requested_by: Annotated[
        str | None, typer.Option("--requested-by", help="Opaque reference; kept for ever.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask nothing; needs --requested-by.")] = False,
) -> None:
    """Go on with an audit log that lost entries, and keep everybody fenced whom Redis still fences.

    Shows what is gone and asks before it changes anything. Enters the tags that only Redis has into
    the database, under an entry `restored` of the log; puts the file of checkpoints of this host
    aside; and lets Redis know this log. Safe to repeat: where nothing is missing nothing is done.

    Example: mm-tasks audit adopt --restored
    """
    if not restored:
        rule = "is needed: it says that you know of a restored backup or a failover"
        raise typer.BadParameter(rule, param_hint="--restored")
    if yes and requested_by is None:
        rule = "is needed with --yes"
        raise typer.BadParameter(rule, param_hint="--requested-by")
    current = runtime.current()
    adoption = current.adoption
    loss = adoption.look()
    _show(current, loss)
    if not loss.reason and not loss.hosts:
        typer.echo("nothing is missing: the log has all entries that Redis and this host saw")
        return
    if not yes:
        requested_by = _asked(requested_by)
    assert requested_by is not None
    adopted = adoption.adopt(loss, requested_by)
    current.fence_sync.load()
    _tell(adopted)


def _show(current: Runtime, loss: Loss) -> None:
    typer.echo(f"Redis knows {loss.known.size} entries, head {loss.known.head or 'unknown'}")
    typer.echo(f"the log has {loss.end.size} entries, head {loss.end.head}")
    if loss.reason:
        gone = loss.seen - loss.agreed
        typer.echo(
            f"{loss.reason}: entries {loss.agreed + 1} to {loss.seen} are gone, {gone} at most"
        )
    for host, reason in loss.hosts.items():
        typer.echo(f"{reason}: found on {host}")
    found = heartbeats.read(current.worker_redis, current.settings.project).values()
    alive = sorted(f"{beat.kind} {beat.name}" for beat in found if beat.age_s <= AGE_MAX_S)
    if alive:
        typer.echo(f"warning: these should stand meanwhile: {', '.join(alive)}", err=True)


def _asked(requested_by: str | None) -> str:
    """Ask what the runbook asks; return by whom the log is adopted."""
    if sys.stdin is None or not sys.stdin.isatty():
        fail("answer the questions on a terminal, or give --requested-by and --yes")
    for question in (
        "Do beat and all workers stand, and does nobody request, cancel or lift?",
        "Is this the database to go on with? The entries above cannot come back afterwards.",
        "Were the files `checkpoints` and an export of the old database, if it can be read, kept?",
    ):
        typer.confirm(question, abort=True, err=True)
    if requested_by is not None:
        return requested_by
    return str(typer.prompt("By whom (an opaque reference, kept for ever)", err=True))


def _tell(adopted: Adopted) -> None:
    typer.echo(f"adopted: {adopted.tags} tags that only Redis had are in the database again")
    word = "before-the-restore"
    if adopted.set_aside is not None:
        typer.echo(f"the checkpoints of this host were put aside: {adopted.set_aside}")
        word = adopted.set_aside.name.partition(".")[2]
    typer.echo(_NEXT.format(word=word))
