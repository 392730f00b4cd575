"""`mm-tasks erasure …`: request, show, stop and retry erasures of persons.

Ids of a person are read from a prompt or from stdin, never from the command line, which
other users of the host can see and shells remember. No output contains one.
"""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Column, Table

from mm_tasks import runtime
from mm_tasks.cli import receipt_options
from mm_tasks.cli.output import fail, plain, show_table
from mm_tasks.erasure.audit import protocol
from mm_tasks.erasure.request import MODES, Reason, reference_rule
from mm_tasks.errors import InvalidEvent, Problem

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Request the erasure of a person, and follow its progress.",
)

_UNKNOWN = "there is no such erasure"
_WORD = "must be a fixed word: small letters, digits and _.:-, at most 64 characters"

_Id = Annotated[str, typer.Argument(metavar="ID", help="Id of the erasure, as `list` shows it.")]
_By = Annotated[
    str, typer.Option("--requested-by", help="Opaque reference of the requester; kept for ever.")
]
_Json = Annotated[bool, typer.Option("--json", help="For programs.")]


# Accepts extra arguments, since the parser's own message would show an id among them.
@app.command(context_settings={"allow_extra_args": True})
def request(  # noqa: PLR0913 - one for each field of a request
    context: typer.Context,
    *,
    requested_by: _By,
    ticket: Annotated[
        str | None, typer.Option(help="Your reference of the request; kept for ever.")
    ] = None,
    reason: Annotated[str | None, typer.Option(help=f"One of {', '.join(Reason)}.")] = None,
    received_at: Annotated[
        str | None, typer.Option(metavar="TIME", help="ISO 8601 with an offset; default: now.")
    ] = None,
    anonymous_ids: Annotated[
        bool, typer.Option("--anonymous-ids", help="Read anonymous ids after the user id.")
    ] = False,
    mode: Annotated[str | None, typer.Option(help=f"One of {', '.join(MODES)}.")] = None,
    as_json: _Json = False,
) -> None:
    """Erase everything held about a person, here and at the vendor; print the erasure's id.

    The user id is read from a hidden prompt, or from the first line of stdin; with
    --anonymous-ids each further line is an anonymous id. Safe to repeat: while an erasure of this
    person is open, its id is printed and the ticket is added to it.

    Example: mm-tasks erasure request --requested-by dpo --ticket GDPR-1093 < user_id.txt
    """
    if context.args:
        rule = "is not an argument: the user id is read from a prompt or from stdin"
        raise typer.BadParameter(rule, param_hint="ID")
    user_id, others = _ids(anonymous=anonymous_ids)
    from mm_tasks.tasks.registry import forget

    fields: Any = {
        "user_id": user_id,
        "anonymous_ids": others or None,
        "requested_by": requested_by,
        "ticket": ticket,
        "reason": reason,
        "received_at": received_at,
        "mode": mode,
    }
    receipt = forget.delay(**fields)
    if as_json:
        typer.echo(json.dumps({"id": receipt.id, "fenced": receipt.fenced}))
        return
    up = "the fence is up"
    pending = "the fence is NOT up yet: the next sweep of a worker raises it"
    typer.echo(f"erasure {receipt.id}: {up if receipt.fenced else pending}")


@app.command(name="list")
def list_command(
    *,
    state: Annotated[
        list[str] | None, typer.Option(help="Only erasures in this state; repeatable.")
    ] = None,
    is_open: Annotated[
        bool, typer.Option("--open", help="Only erasures that have not ended.")
    ] = False,
    as_json: _Json = False,
    limit: Annotated[int, typer.Option(min=1, help="Show at most so many, the newest.")] = 50,
) -> None:
    """List erasures, the newest first, without ids of persons. Reads only.

    Example: mm-tasks erasure list --open
    """
    if not protocol.STATES.issuperset(state or ()):
        rule = f"must be one of {', '.join(sorted(protocol.STATES))}"
        raise typer.BadParameter(rule, param_hint="--state")
    states = {*(state or ()), *(protocol.OPEN if is_open else ())}
    rows = runtime.current().audit_store.queries.listed(states or None, limit)
    if as_json:
        typer.echo(json.dumps({"erasures": rows}))
        return
    ids = (Column(name, no_wrap=True) for name in ("id", "state", "received_at", "due_at"))
    table = Table(*ids, "acknowledged", "tickets", title="erasures")
    for row in rows:
        cells = (plain(row[name]) for name in ("id", "state", "received_at", "due_at"))
        table.add_row(*cells, _passed(row), plain(", ".join(row["tickets"])))
    show_table(table)


@app.command()
def show(  # noqa: PLR0913 - one for each option of a receipt
    id_: _Id,
    *,
    as_json: _Json = False,
    with_receipt: Annotated[
        bool, typer.Option("--receipt", help="Verify the log, and print a receipt for others.")
    ] = False,
    audience: receipt_options.For = None,
    form: receipt_options.Format = None,
    language: receipt_options.Lang = None,
    outside: receipt_options.Outside = None,
) -> None:
    """Show one erasure: its state, removed events, and each pass at the vendor. Reads only.

    --receipt states the facts of the audit log, for an authority with every entry, for the person
    in plain words. The whole log is verified first, and no receipt is printed if it does not hold.
    Answers of the vendor are acknowledgements, since the vendor's data cannot be seen from here.

    Example: mm-tasks erasure show 0197c2a4-… --receipt --for person --format html > receipt.html
    """
    options = (audience, form, language, outside)
    if with_receipt:
        if as_json:
            rule = "has forms of its own, and cannot be combined with --json: see --format"
            raise typer.BadParameter(rule, param_hint="--receipt")
        receipt = receipt_options.receipt(id_, *options)
        typer.echo(fail(_UNKNOWN) if receipt is None else receipt)
        return
    if any(options):
        rule = "are of a receipt: add --receipt"
        raise typer.BadParameter(rule, param_hint="--for, --format, --lang and --outside")
    erasure = runtime.current().audit_store.queries.show(id_)
    if erasure is None:
        fail(_UNKNOWN)
    if as_json:
        typer.echo(json.dumps(erasure))
        return
    table = Table("field", "value")
    passes, removed = erasure.pop("passes"), erasure.pop("removed")
    for name, value in erasure.items():
        table.add_row(name, plain(", ".join(map(str, value)) if isinstance(value, list) else value))
    for place, number in removed.items():
        table.add_row(plain(f"removed: {place}"), f"{number:,}")
    show_table(table)
    show_table(_table_of(passes))


@app.command()
def cancel(id_: _Id, *, requested_by: _By) -> None:
    """End an erasure before the vendor is called; events of its person are accepted again.

    Events removed until then stay removed. A repetition is refused and changes nothing.

    Example: mm-tasks erasure cancel 0197c2a4-… --requested-by dpo
    """
    runtime.current().erasure_service.cancel(id_, _reference("requested_by", requested_by))
    typer.echo("cancelled: the vendor was not called")


@app.command()
def lift(id_: _Id, *, requested_by: _By) -> None:
    """Accept events of a completed erasure's person again, for example of a new account.

    A repetition is refused and changes nothing.

    Example: mm-tasks erasure lift 0197c2a4-… --requested-by dpo
    """
    runtime.current().erasure_service.lift(id_, _reference("requested_by", requested_by))
    typer.echo("lifted: events of this person are accepted again, unless another erasure is open")


@app.command()
def retry(id_: _Id, *, requested_by: _By) -> None:
    """Let a blocked erasure (retrying, waiting_key, attention) call the vendor again now.

    Safe to repeat; each call is recorded.

    Example: mm-tasks erasure retry 0197c2a4-… --requested-by dpo
    """
    runtime.current().erasure_service.retry(id_, _reference("requested_by", requested_by))
    typer.echo("the next sweep of a worker calls the vendor again")


@app.command()
def reject(
    id_: _Id,
    *,
    requested_by: _By,
    outcome: Annotated[str, typer.Option(help="Reason, as a fixed word: not_verified.")],
) -> None:
    """End an erasure like `cancel`, because its request was refused.

    A repetition is refused and changes nothing.

    Example: mm-tasks erasure reject 0197c2a4-… --requested-by dpo --outcome not_verified
    """
    by = _reference("requested_by", requested_by)
    if not protocol.is_word(outcome):
        raise InvalidEvent([Problem("outcome", _WORD)])
    runtime.current().erasure_service.cancel(id_, by, "rejected", outcome=outcome)
    typer.echo("rejected: the vendor was not called")


@app.command()
def duplicate(
    id_: _Id,
    *,
    original: Annotated[
        str, typer.Option("--of", metavar="ID", help="Id of the original erasure.")
    ],
    requested_by: _By,
) -> None:
    """End an erasure like `cancel`, because another erasure covers its person.

    A repetition is refused and changes nothing.

    Example: mm-tasks erasure duplicate 0197c2a4-… --of 0197c2a1-… --requested-by dpo
    """
    by = _reference("requested_by", requested_by)
    original = _reference("of", original)
    runtime.current().erasure_service.cancel(id_, by, "duplicate_of", original=original)
    typer.echo("noted as a duplicate: the vendor was not called for it")


def _ids(*, anonymous: bool) -> tuple[str, list[str]]:
    """Return the user id and the anonymous ids, from hidden prompts or the lines of stdin."""
    if sys.stdin is not None and sys.stdin.isatty():
        user_id = _prompted("user id (not shown)")
        others = iter(lambda: _prompted("anonymous id (not shown; none: done)"), "")
        return user_id, list(others) if anonymous else []
    text = b"" if sys.stdin is None else sys.stdin.buffer.read()
    try:
        first, *rest = text.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        rest = None
    if rest is None:
        raise InvalidEvent([Problem("user_id", "must be read from text in UTF-8")])
    if any(line.endswith("\r") for line in (first, *rest)):
        rule = "must be read from lines that end in a newline without a carriage return"
        raise InvalidEvent([Problem("user_id", rule)])
    if any(rest) and not anonymous:
        rule = "must be the only line, unless --anonymous-ids declares the others"
        raise InvalidEvent([Problem("user_id", rule)])
    return first, rest if anonymous else []


def _prompted(question: str) -> str:
    # On stderr: stdout may be for programs.
    return str(typer.prompt(question, default="", show_default=False, hide_input=True, err=True))


def _reference(field: str, value: str) -> str:
    if rule := reference_rule(value, ()):
        raise InvalidEvent([Problem(field, rule)])
    return value


def _passed(row: dict[str, Any]) -> str:
    return f"{row['acknowledged']}/{len(row['passes_s']) or '-'}"


def _table_of(passes: list[dict[str, Any]]) -> Table:
    shown = ("round", "n", "attempts", "due_at", "sent_at", "answered_at", "status", "outcome")
    table = Table(*shown, title="passes, each with its last call")
    for row in passes:
        table.add_row(*(plain(row[name]) for name in shown))
    return table
