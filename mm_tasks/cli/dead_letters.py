"""`mm-tasks dead …`: list, show, revive, discard and export dead letters.

Ids of persons and properties are shown only with an option, and never in a
message. A permanent removal needs `--yes`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Column, Table

from mm_tasks import runtime
from mm_tasks.buffer.dead_letters import DeadLetter, DeadLetters, Filter, Group
from mm_tasks.cli.dead_filter import filtered, selected
from mm_tasks.cli.output import destination, fail, plain, show_table
from mm_tasks.timestamps import stamp_s

if TYPE_CHECKING:
    from collections import Counter

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    help="Show dead letters, events set aside for a person to decide; revive or discard them.",
)

# Every other field may identify a person: ids, properties, and parts of a URL.
_SHOWN = ("event", "event_id", "timestamp")

_Ids = Annotated[list[str] | None, typer.Argument(metavar="ID", help="Ids of dead letters.")]
_Limit = Annotated[int | None, typer.Option(min=1, help="At most this many, the oldest first.")]
_All = Annotated[bool, typer.Option("--all", help="All dead letters.")]
_Json = Annotated[bool, typer.Option("--json", help="For programs.")]


@app.command(name="list")
@filtered
def list_command(
    chosen: Filter,
    *,
    limit: Annotated[int, typer.Option(min=1, help="Show at most this many, the newest.")] = 50,
    as_json: _Json = False,
) -> None:
    """List dead letters, the newest first, and count all that match. Reads only.

    Shows no ids of persons and no properties.

    Example: mm-tasks dead list --reason rejected --since 7d
    """
    dead = _dead_letters()
    letters = list(dead.letters(replace(chosen, limit=limit), newest_first=True))
    counts = dead.counts(chosen)
    if as_json:
        groups = [{**group._asdict(), "events": n} for group, n in counts.most_common()]
        rows = [{**_about(letter), "event": letter.event} for letter in letters]
        typer.echo(json.dumps({"letters": rows, "counts": groups, "matching": counts.total()}))
        return
    show_table(_table_of(letters))
    show_table(_table_of_counts(counts))
    typer.echo(f"{len(letters)} shown of {counts.total()} that match")


@app.command()
def show(
    id_: Annotated[str, typer.Argument(metavar="ID", help="As `dead list` shows it.")],
    *,
    properties: Annotated[
        bool, typer.Option("--properties", help="Show the whole event: personal data.")
    ] = False,
    as_json: _Json = False,
) -> None:
    """Show one dead letter and its reason. Reads only.

    Shows the event's name, event_id and timestamp. All other fields may be personal data
    (user_id, anonymous_id, URLs, properties, traits) and need --properties.

    Example: mm-tasks dead show track:0197c2a4-…:1
    """
    letter = next(_dead_letters().letters(Filter(ids=(id_,))), None)
    if letter is None:
        fail("no dead letter has this id; it may have been revived or discarded")
    fields, hidden = _fields(letter, properties=properties)
    if as_json:
        typer.echo(json.dumps({**_about(letter), "fields": fields, "hidden": hidden}))
        return
    table = Table("field", "value")
    for name, value in _about(letter).items():
        table.add_row(name, plain(value))
    for name, value in fields.items():
        table.add_row(plain(f"event: {name}"), plain(json.dumps(value, ensure_ascii=False)))
    for name, size in hidden.items():
        table.add_row(plain(f"event: {name}"), f"…({size} bytes)")
    show_table(table)


@app.command()
@filtered
def revive(
    chosen: Filter,
    ids: _Ids = None,
    *,
    limit: _Limit = None,
    everything: _All = False,
) -> None:
    """Send dead letters again: those with these ids, or all that match.

    They are sent unchanged, with the same event_id; those of an erased person are erased
    instead. An ambiguous one may have been stored already, and is then stored twice.
    Safe to repeat: a revived letter is no dead letter any more.

    Example: mm-tasks dead revive --code invalid_payload --since 2h
    """
    wanted, dead = selected(chosen, limit, ids, everything=everything), _dead_letters()
    done = dead.revive(wanted.ids or [letter.id for letter in dead.letters(wanted)])
    typer.echo(
        f"{done.revived} revived, {done.erased} erased because their person is, "
        f"{done.unknown} unknown"
    )


@app.command()
@filtered
def discard(
    chosen: Filter,
    ids: _Ids = None,
    *,
    limit: _Limit = None,
    everything: _All = False,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; without it they are only counted.")
    ] = False,
) -> None:
    """Remove dead letters for good: those with these ids, or all that match.

    Without --yes it prints their number, removes nothing and exits 1. They count as discarded.
    Safe to repeat with ids; a filter may match letters buried in the meantime.

    Example: mm-tasks dead discard --status 413 --until 30d --yes
    """
    wanted, dead = selected(chosen, limit, ids, everything=everything), _dead_letters()
    matching = [letter.id for letter in dead.letters(wanted)]
    if not yes:
        fail(f"{len(matching)} would be removed for good; nothing was. Add --yes to do it")
    removed = dead.discard(matching)
    typer.echo(f"{removed} discarded, {len(set(ids or matching)) - removed} unknown")


@app.command()
@filtered
def export(
    chosen: Filter,
    file: Annotated[str, typer.Argument(metavar="FILE", help="File to create; - is stdout.")],
    *,
    limit: _Limit = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write dead letters, the oldest first, one line of JSON each. Removes none of them.

    The lines contain whole events, which is PERSONAL DATA: an erasure does not reach the file.
    Only you can read it (mode 0600). Safe to repeat: only --force replaces a file.

    Example: mm-tasks dead export letters.jsonl --reason rejected
    """
    letters = _dead_letters().letters(replace(chosen, limit=limit))
    written = 0
    with destination(file, force=force) as opened:
        for letter in letters:
            opened.write(_line(letter))
            written += 1
    typer.echo(f"{written} written. This is personal data; no erasure reaches it", err=True)


def _dead_letters() -> DeadLetters:
    current = runtime.current()
    return DeadLetters(current.worker_redis, current.settings.project)


def _about(letter: DeadLetter) -> dict[str, Any]:
    """Return all fields except the event, in the order of an export."""
    return {
        "id": letter.id,
        "lane": letter.lane,
        "buried_at": stamp_s(letter.buried_at_ms / 1000),
        "accepted_at": stamp_s(letter.accepted_at_ms / 1000),
        "reason": letter.reason,
        "status": letter.status,
        "code": letter.code,
        "attempts": letter.attempts,
        "kind": letter.kind,
    }


def _fields(letter: DeadLetter, *, properties: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """Return the shown fields, and the sizes in bytes of the hidden ones."""
    fields = letter.fields
    if fields is None:
        return {}, {"(no JSON object)": len(letter.body)}
    shown = {name: value for name, value in fields.items() if properties or name in _SHOWN}
    hidden = {
        name: len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
        for name, value in fields.items()
        if name not in shown
    }
    return shown, hidden


def _line(letter: DeadLetter) -> bytes:
    """Return one line of an export; the record is verbatim if it is one line of JSON."""
    head = json.dumps(_about(letter)).encode()
    record = letter.body
    if letter.fields is None or b"\n" in record or b"\r" in record:
        record = json.dumps(record.decode("utf-8", "backslashreplace")).encode()
    return b'%b, "record": %b}\n' % (head[:-1], record)


def _table_of(letters: list[DeadLetter]) -> Table:
    shown = ("lane", "buried_at", "reason", "status", "code", "attempts")
    table = Table(Column("id", no_wrap=True), *shown, "event", title="dead letters")
    for letter in letters:
        about = _about(letter)
        table.add_row(letter.id, *(plain(about[name]) for name in shown), plain(letter.event))
    return table


def _table_of_counts(counts: Counter[Group]) -> Table:
    table = Table("lane", "reason", "status", "code", "events", title="all that match")
    for group, events in counts.most_common():
        table.add_row(*map(plain, group), f"{events:,}")
    return table
