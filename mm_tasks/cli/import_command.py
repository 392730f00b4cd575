"""`mm-tasks import`: events from files, each row once, however often it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import typer

from mm_tasks import runtime
from mm_tasks.cli import import_options as options
from mm_tasks.cli.import_progress import Rejects, Shown, watching
from mm_tasks.cli.output import fail, plain
from mm_tasks.imports.chunks import ChunkReader, RowEncoder, Stop
from mm_tasks.imports.columns import mapping, source
from mm_tasks.imports.importer import Import, ImportResult, check
from mm_tasks.imports.position import Positions
from mm_tasks.imports.reader import CsvRows, Lines, json_rows, opened

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator

    from mm_tasks.cli.import_options import Columns, Given, Options
    from mm_tasks.imports.reader import Row


def import_command(  # noqa: PLR0913 - its options
    files: options.Files,
    *,
    name: options.Name = None,
    again: options.Again = False,
    format_: options.Format = None,
    map_: options.Maps = None,
    set_: options.Sets = None,
    ignore_unmapped: options.IgnoreUnmapped = False,
    delimiter: options.Delimiter = None,
    skip_bad: options.SkipBad = False,
    rejects: options.RejectsFile = None,
    dry_run: options.DryRun = False,
    priority: options.Priority = "normal",
    as_json: options.AsJson = False,
) -> None:
    """Store the events of files: JSON lines or CSV, plain or gzip. Each row is stored once.

    Safe to repeat: it goes on where it was, also after a kill, and a file that is done stores
    nothing. Stops at a bad row with exit 1; what is before it is stored. Waits while the buffer
    is full. Ctrl-C ends it after the part in hand.

    Example: mm-tasks import events.jsonl.gz
    """
    maps = [source("--map", words) for words in map_ or ()]
    sets = [source("--set", words) for words in set_ or ()]
    columns = options.Columns(maps, sets, ignore_unmapped, delimiter)
    given = options.given(files, name, format_, columns)
    if rejects and not (skip_bad or dry_run):
        fail("--rejects needs --skip-bad or --dry-run: otherwise the import stops at a bad row")
    lane, is_one_of_many = options.LANES[priority], len(given) > 1
    about = options.Options(columns, lane, skip_bad, again, dry_run, is_one_of_many)
    tallies: list[ImportResult] = []
    with _stopping() as stop, ExitStack() as stack:
        refused = Rejects(rejects)
        stack.callback(refused.close)
        stack.callback(_show, tallies, dry_run=dry_run, as_json=as_json)
        for one in given:
            _import(one, about, refused, stop, tallies)
            if tallies[-1].end != "finished":
                break
    raise typer.Exit(_code(tallies, stop, dry_run=dry_run))


def _import(
    given: Given, about: Options, rejects: Rejects, stop: Stop, tallies: list[ImportResult]
) -> None:
    """Import one file, or check it; its tally is the last one, also where this raises."""
    tallies.append(ImportResult(given.name))
    current = runtime.current()
    with _stream(given) as (stream, shown):
        lines = Lines(opened(stream))
        rows, to_fields = _rows(lines, given, about.columns, rejects)
        encode = RowEncoder(
            current.settings.project, given.name, current.event_bytes_max, to_fields
        )
        skip_bad = about.skip_bad or about.dry_run
        reading = ChunkReader(lines, rows, encode, skip_bad=skip_bad, stop=stop)
        with watching(shown, rejects, is_one_of_many=about.is_one_of_many) as watch:
            if about.dry_run:
                check(reading, tallies[-1], watch)
                return
            positions = Positions(current.worker_redis, current.settings.project)
            producer = current.producers[about.lane]
            one = Import(positions, producer, tallies[-1], watch, stop)
            one.resume(lines, again=about.again)
            one.store(reading, partial(_nudge, about.lane))


def _nudge(lane: str) -> None:
    from mm_tasks.events.lanes import QUEUES  # noqa: PLC0415 - slow to import
    from mm_tasks.tasks.celery_app import FLUSH  # noqa: PLC0415 - slow to import
    from mm_tasks.tasks.publisher import nudge  # noqa: PLC0415 - slow to import

    nudge(FLUSH, (lane,), QUEUES[lane])


def _rows(
    lines: Lines, given: Given, columns: Columns, rejects: Rejects
) -> tuple[Iterable[Row], Callable[[Any], dict[str, Any]]]:
    """Return the rows of a file, and what makes fields of a row's content."""
    rejects.head = b""
    if given.format == "jsonl":
        return json_rows(lines), dict
    maps, sets, ignore_unmapped, delimiter = columns
    rows = CsvRows(lines, options.delimiter(delimiter))
    rejects.head = rows.header_raw
    return rows, mapping(rows.header, maps, sets, ignore_unmapped=ignore_unmapped)


@contextmanager
def _stream(given: Given) -> Iterator[tuple[io.BufferedReader, Shown]]:
    """Open a file, or stdin; of what is no regular file nobody knows size and place."""
    if str(given.path) == options.STDIN:
        yield sys.stdin.buffer, Shown(given.name)  # type: ignore[misc]
        return
    try:
        file = given.path.open("rb")
    except OSError as error:
        fail(f"{plain(given.name)}: cannot be read: {error.strerror}")
    with file:
        about = os.fstat(file.fileno())
        is_regular = stat.S_ISREG(about.st_mode)
        yield file, Shown(given.name, file.tell, about.st_size) if is_regular else Shown(given.name)


@contextmanager
def _stopping() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM ask for an end, the second one end the process at once."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def back() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: object) -> None:
        stop.ask(number)
        back()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        back()


def _code(tallies: list[ImportResult], stop: Stop, *, dry_run: bool) -> int:
    last = tallies[-1]
    if last.end == "stopped":
        return 128 + stop.signal
    return int(last.end != "finished" or (dry_run and any(one.bad for one in tallies)))


def _show(tallies: list[ImportResult], *, dry_run: bool, as_json: bool) -> None:
    """Print what was done, and nothing else, on stdout."""
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "files": [asdict(one) for one in tallies]}))
        return
    for one in tallies:
        typer.echo(f"{plain(one.name)}: {_summary(one, dry_run=dry_run)}")


def _summary(tally: ImportResult, *, dry_run: bool) -> str:
    if tally.end == "finished" and tally.lines_before and tally.lines == tally.lines_before:
        return f"nothing new: its {tally.lines} lines were imported before"
    said = [f"{tally.stored} rows {'would be stored' if dry_run else 'stored'}"]
    if tally.lines_before:
        said.append(f"from line {tally.lines_before + 1} on, where an earlier run ended")
    if tally.suppressed:
        said.append(f"{tally.suppressed} refused, their persons are erased")
    if tally.bad:
        said.append(f"{tally.bad} bad")
    if tally.undated:
        said.append(f"{tally.undated} had no timestamp and have the moment of import")
    return ", ".join(said) + _ENDS[tally.end].format(tally.lines)


_ENDS = {
    "finished": "",
    "stopped": ". Stopped after line {}; run it again to go on",
    "bad": ". Nothing is stored behind line {}: correct the file and run it again, or --skip-bad",
    "failed": ". Ended after line {}",
}
