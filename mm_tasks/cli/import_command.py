"""`mm-tasks import`: store the events of files, each row once, also after interruptions."""

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

    from mm_tasks.cli.import_options import Columns, InputFile, Options
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

    Safe to repeat: it continues at its last position, also after a kill, and a finished file
    stores nothing. Stops at a bad row with exit 1; the rows before it are stored. Waits while
    the buffer is full. Ctrl-C ends it after the current chunk.

    Example: mm-tasks import events.jsonl.gz
    """
    maps = [source("--map", words) for words in map_ or ()]
    sets = [source("--set", words) for words in set_ or ()]
    columns = options.Columns(maps, sets, ignore_unmapped, delimiter)
    inputs = options.input_files(files, name, format_, columns)
    if rejects and not (skip_bad or dry_run):
        fail("--rejects needs --skip-bad or --dry-run; without them the import stops at a bad row")
    lane, is_one_of_many = options.LANES[priority], len(inputs) > 1
    about = options.Options(columns, lane, skip_bad, again, dry_run, is_one_of_many)
    results: list[ImportResult] = []
    with _stopping() as stop, ExitStack() as stack:
        rejected = Rejects(rejects)
        stack.callback(rejected.close)
        stack.callback(_show, results, dry_run=dry_run, as_json=as_json)
        for file in inputs:
            results.append(ImportResult(file.name))
            _import(file, about, rejected, stop, results[-1])
            if results[-1].end != "finished":
                break
    raise typer.Exit(_code(results, stop, dry_run=dry_run))


def _import(
    file: InputFile, about: Options, rejects: Rejects, stop: Stop, result: ImportResult
) -> None:
    """Import one file, or validate it; the result counts also if this raises."""
    current = runtime.current()
    with _stream(file) as (stream, shown):
        lines = Lines(opened(stream))
        rows, to_fields = _rows(lines, file, about.columns, rejects)
        encode = RowEncoder(current.settings.project, file.name, current.event_bytes_max, to_fields)
        skip_bad = about.skip_bad or about.dry_run
        reader = ChunkReader(lines, rows, encode, skip_bad=skip_bad, stop=stop)
        with watching(shown, rejects, is_one_of_many=about.is_one_of_many) as watch:
            if about.dry_run:
                check(reader, result, watch)
                return
            positions = Positions(current.worker_redis, current.settings.project)
            producer = current.producers[about.lane]
            run = Import(positions, producer, result, watch, stop)
            run.resume(lines, again=about.again)
            run.store(reader, partial(_nudge, about.lane))


def _nudge(lane: str) -> None:
    from mm_tasks.events.lanes import QUEUES
    from mm_tasks.tasks.celery_app import FLUSH
    from mm_tasks.tasks.publisher import nudge

    nudge(FLUSH, (lane,), QUEUES[lane])


def _rows(
    lines: Lines, file: InputFile, columns: Columns, rejects: Rejects
) -> tuple[Iterable[Row], Callable[[Any], dict[str, Any]]]:
    """Return the rows of a file, and the function that makes fields of a row's content."""
    rejects.head = b""
    if file.format == "jsonl":
        return json_rows(lines), dict
    maps, sets, ignore_unmapped, delimiter = columns
    rows = CsvRows(lines, options.delimiter(delimiter))
    rejects.head = rows.header_raw
    return rows, mapping(rows.header, maps, sets, ignore_unmapped=ignore_unmapped)


@contextmanager
def _stream(file: InputFile) -> Iterator[tuple[io.BufferedReader, Shown]]:
    """Open a file, or stdin; size and position are known of a regular file only."""
    if str(file.path) == options.STDIN:
        yield sys.stdin.buffer, Shown(file.name)  # type: ignore[misc] # stdin's type
        return
    try:
        opened_file = file.path.open("rb")
    except OSError as error:
        fail(f"{plain(file.name)}: cannot be read: {error.strerror}")
    with opened_file as stream:
        about = os.fstat(stream.fileno())
        is_regular = stat.S_ISREG(about.st_mode)
        shown = Shown(file.name, stream.tell, about.st_size) if is_regular else Shown(file.name)
        yield stream, shown


@contextmanager
def _stopping() -> Iterator[Stop]:
    """Let the first Ctrl-C or SIGTERM stop the import, and a second one end the process at once."""
    stop = Stop()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def ask(number: int, _: object) -> None:
        stop.signal = number
        restore()

    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    finally:
        restore()


def _code(results: list[ImportResult], stop: Stop, *, dry_run: bool) -> int:
    last = results[-1]
    if last.end == "stopped":
        return 128 + stop.signal
    return int(last.end != "finished" or (dry_run and any(result.bad for result in results)))


def _show(results: list[ImportResult], *, dry_run: bool, as_json: bool) -> None:
    """Print the results, and nothing else, on stdout."""
    if as_json:
        typer.echo(
            json.dumps({"dry_run": dry_run, "files": [asdict(result) for result in results]})
        )
        return
    for result in results:
        typer.echo(f"{plain(result.name)}: {_summary(result, dry_run=dry_run)}")


def _summary(result: ImportResult, *, dry_run: bool) -> str:
    if result.end == "finished" and result.lines_before and result.lines == result.lines_before:
        return f"nothing new: its {result.lines} lines were imported before"
    parts = [f"{result.stored} rows {'would be stored' if dry_run else 'stored'}"]
    if result.lines_before:
        parts.append(f"from line {result.lines_before + 1} on, where an earlier run ended")
    if result.suppressed:
        parts.append(f"{result.suppressed} refused, their persons are erased")
    if result.bad:
        parts.append(f"{result.bad} bad")
    if result.undated:
        parts.append(f"{result.undated} had no timestamp and have the moment of import")
    return ", ".join(parts) + _ENDS[result.end].format(result.lines)


_ENDS = {
    "finished": "",
    "stopped": ". Stopped after line {}; run it again to go on",
    "bad": ". Nothing is stored behind line {}: correct the file and run it again, or --skip-bad",
    "failed": ". Ended after line {}",
}
