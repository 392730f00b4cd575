"""`mm-tasks audit …`: verify the log of erasures, and export it for others.

The log and an export contain pseudonyms, never an id. `erasure/audit/log` has the format.
"""

from __future__ import annotations

import json
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.buffer import heartbeats
from mm_tasks.cli.output import destination, fail
from mm_tasks.erasure.audit import verification
from mm_tasks.erasure.audit.checkpoints import read_file
from mm_tasks.errors import AuditChainBroken
from mm_tasks.monitoring.health import AGE_MAX_S

if TYPE_CHECKING:
    from mm_tasks.erasure.adoption import Adopted, Loss
    from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
    from mm_tasks.erasure.audit.verification import Report
    from mm_tasks.runtime import Runtime

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Verify and export the audit log of erasures, and publish checkpoints.",
)

# The exit code of a log that holds, where nothing from outside of the database was compared.
_NOT_COMPARED = 3

_NEXT = """Next:
1. On each other host: mv checkpoints checkpoints.{word} in its state directory, with a note of
   what was restored, from when, why, by whom.
2. Request again, from your tickets, each erasure received since the backup, with --received-at.
3. Cancel again each erasure that was cancelled since the backup, lift again each that was lifted.
4. mm-tasks audit verify, then start beat and the workers."""

_Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command()
def verify(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="An export; default: the log itself.")
    ] = None,
    *,
    outside: Annotated[
        list[str] | None,
        typer.Option("--outside", metavar="FILE", help="Checkpoints kept elsewhere; repeatable."),
    ] = None,
    as_json: _Json = False,
) -> None:
    """Verify the log, or an export of it: exit 0 if it is intact, 1 with the first broken rule.

    The log is compared with its checkpoints in the database, in the state directory and in the
    files given, and with every column of the work rows; an export with the checkpoints of the
    state directory and of the files, so that an older export fails: export again. Exit 3 if all
    holds, but no checkpoint from outside of the database was compared: then nothing shows that no
    tail was cut. Notes the result of the log in Redis, for `status`, `health` and metrics. Run by
    the owner of an audit store of an earlier release, it upgrades that first.

    Example: mm-tasks audit verify --outside checkpoints-of-host-b
    """
    elsewhere = [kept for path in outside or () for kept in _checkpoints_of(Path(path))]
    report = _of_log(elsewhere) if file is None else _of_export(Path(file), elsewhere)
    _say(report, as_json=as_json)
    if report.size and not report.checkpoints_host and not report.checkpoints_outside:
        typer.echo("warning: no checkpoint from outside of the database was compared", err=True)
        raise typer.Exit(_NOT_COMPARED)


def _say(report: Report, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(asdict(report)))
        return
    typer.echo(f"verified: {report.size} entries, head {report.head}")
    states = ", ".join(f"{state} {n}" for state, n in sorted(report.erasures.items()))
    typer.echo(f"erasures: {states or 'none'}")
    typer.echo(
        f"checkpoints: {report.checkpoints} compared; {report.checkpoints_database} of the "
        f"database, {report.checkpoints_host} of this host, "
        f"{report.checkpoints_outside} from elsewhere"
    )
    if not report.is_keyed:
        typer.echo("not checked without the pseudonym key: MACs, tags and ids", err=True)
    if report.guards_missing:
        names = ", ".join(report.guards_missing)
        typer.echo(f"warning: guards of the log are missing: {names}", err=True)


@app.command()
def export(
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to create; - is stdout.")] = "-",
    *,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write the log: a line of JSON for each entry, then a checkpoint.

    Only you can read the file (mode 0600). Anybody can verify it, with `audit verify FILE`,
    python -m mm_tasks.verify_export, or jq and sha256sum. Safe to repeat: only --force replaces a
    file.

    Example: mm-tasks audit export audit.jsonl
    """
    written = -1  # the checkpoint is not an entry
    with destination(file, force=force) as opened:
        for line in runtime.current().audit_store.log.export():
            opened.write(f"{line}\n".encode())
            written += 1
    typer.echo(f"{written} entries written", err=True)


@app.command()
def checkpoint(*, as_json: _Json = False) -> None:
    """Publish a checkpoint of the log to the state directory, the log output and the hook.

    Exit 1 if it could not be written to the state directory. Safe to repeat.

    Example: mm-tasks audit checkpoint --json
    """
    log = runtime.current().audit_store.log
    sealed = log.checkpoint()
    if as_json:
        typer.echo(json.dumps(sealed._asdict()))
    else:
        typer.echo(f"size {sealed.size}, head {sealed.head}, at {sealed.at}")
    if sealed.size and sealed not in _kept(log.outside):
        fail("the checkpoint could not be written to the state directory")


@app.command()
def adopt(
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


def _checkpoints_of(path: Path) -> list[Checkpoint]:
    try:
        return read_file(path)
    except OSError as error:
        fail(f"--outside: the file cannot be read ({type(error).__name__})")


def _of_log(elsewhere: list[Checkpoint]) -> Report:
    store = runtime.current().audit_store
    log = store.log
    if log.database.is_missing:
        fail("there is no audit log; see MM_TASKS_AUDIT_URL and MM_TASKS_STATE_DIR")
    store.check()
    state = runtime.current().audit_state
    try:
        report = verification.verify(log, elsewhere)
    except AuditChainBroken as error:
        with suppress(RedisError):
            state.found_broken(str(error))
        raise
    except OSError as error:
        fail(f"the checkpoints in the state directory cannot be read ({type(error).__name__})")
    with suppress(RedisError):
        state.verified(report.size)
        state.guards(", ".join(report.guards_missing))
    return report


def _of_export(path: Path, elsewhere: list[Checkpoint]) -> Report:
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        fail(f"the export cannot be read ({type(error).__name__})")
    # Only a newline ends a line.
    lines = text.removesuffix("\n").split("\n")
    log = runtime.current().audit_store.log
    host = _kept(log.outside)
    report = verification.verify_lines(lines, [*host, *elsewhere], log.find_key())
    return replace(report, checkpoints_host=len(host), checkpoints_outside=len(elsewhere))


def _kept(outside: CheckpointSinks) -> list[Checkpoint]:
    try:
        return outside.read()
    except OSError:
        return []


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
