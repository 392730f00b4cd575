"""`mm-tasks audit …`: verify the log of erasures, and export it for others.

The log and an export contain pseudonyms, never an id. `erasure/audit/log` has the format.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from redis.exceptions import RedisError

from mm_tasks import runtime
from mm_tasks.cli import adopt
from mm_tasks.cli.output import destination, fail
from mm_tasks.erasure.audit import verification
from mm_tasks.erasure.audit.checkpoints import read_file
from mm_tasks.errors import AuditChainBroken
from mm_tasks.timestamps import STAMP, moment, stamp

if TYPE_CHECKING:
    from mm_tasks.erasure.audit.checkpoints import Checkpoint, CheckpointSinks
    from mm_tasks.erasure.audit.verification import Report

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Verify and export the audit log of erasures, and publish checkpoints.",
)

# Clocks of hosts differ, and an entry may be committed a little later than its time.
_CLOCKS_DIFFER = timedelta(minutes=5)
# The exit code of a log that holds, where nothing from outside of the database was compared.
_NOT_COMPARED = 3

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
    state directory and of the files. Exit 3 if all holds, but no checkpoint from outside of the
    database was compared: then nothing shows that no tail was cut. Notes the result of the log in
    Redis, for `status`, `health` and metrics, and changes nothing else.

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
    scripts/verify_audit.py, or jq and sha256sum. Safe to repeat: only --force replaces a file.

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


app.command(name="adopt")(adopt.run)


def _checkpoints_of(path: Path) -> list[Checkpoint]:
    try:
        return read_file(path)
    except OSError as error:
        fail(f"--outside: the file cannot be read ({type(error).__name__})")


def _of_log(elsewhere: list[Checkpoint]) -> Report:
    log = runtime.current().audit_store.log
    if log.database.is_missing:
        fail("there is no audit log; see MM_TASKS_AUDIT_URL and MM_TASKS_STATE_DIR")
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
    host = _of_its_time(_kept(log.outside), lines[-1])
    report = verification.verify_lines(lines, [*host, *elsewhere], log.find_key())
    return replace(report, checkpoints_host=len(host), checkpoints_outside=len(elsewhere))


def _of_its_time(checkpoints: list[Checkpoint], last: str) -> list[Checkpoint]:
    """Return the checkpoints that an export must agree with, without later ones."""
    end: Any = None
    with suppress(ValueError, RecursionError):
        end = json.loads(last)
    if not isinstance(end, dict) or not isinstance(end.get("size"), int):
        return checkpoints
    at = end.get("at")
    if not isinstance(at, str) or STAMP.fullmatch(at) is None:
        return checkpoints
    until = stamp(moment(at) - _CLOCKS_DIFFER)
    return [known for known in checkpoints if known.size <= end["size"] or known.at <= until]


def _kept(outside: CheckpointSinks) -> list[Checkpoint]:
    try:
        return outside.read()
    except OSError:
        return []
