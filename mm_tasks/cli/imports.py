"""`mm-tasks import`: events from files, each row once, however often it is interrupted."""

from __future__ import annotations

import json
import os
import signal
import stat
import sys
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from mm_tasks import runtime
from mm_tasks.cli.import_watch import Lines as Watching
from mm_tasks.cli.import_watch import Rejects, Shown, watching
from mm_tasks.cli.output import fail, plain
from mm_tasks.errors import ImportRefused
from mm_tasks.importing import Encoding, Import, Reading, Stop, Tally, check
from mm_tasks.mapping import mapping, source
from mm_tasks.position import Positions
from mm_tasks.rows import CsvRows, Lines, json_rows, opened

if TYPE_CHECKING:
    import io
    from collections.abc import Callable, Iterable, Iterator

    from mm_tasks.mapping import Source
    from mm_tasks.rows import Row

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_LANES = {"normal": "track", "low": "backfill"}
_STDIN = "-"
_NAME_CHARACTERS_MAX = 255

_Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="- is stdin.")]
_Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD[:TYPE]=COLUMN", help="CSV: which column a field comes from."
    ),
]
_Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD[:TYPE]=VALUE", help="CSV: the same for every row."),
]


class _Given(NamedTuple):
    """One file to import."""

    path: Path
    name: str
    format: str


@dataclass(frozen=True, slots=True)
class _Options:
    """What holds for all files."""

    maps: list[Source]
    sets: list[Source]
    ignore_unmapped: bool
    delimiter: str
    skip_bad: bool
    again: bool
    dry_run: bool
    lane: str
    is_one_of_many: bool


def import_command(  # noqa: PLR0913 - its options
    files: _Files,
    *,
    name: Annotated[
        str | None, typer.Option(help="What it is known by; without it, the file's name.")
    ] = None,
    again: Annotated[
        bool, typer.Option("--again", help="Start over from line 1: rows are sent twice.")
    ] = False,
    format_: Annotated[
        Literal["jsonl", "csv"] | None,
        typer.Option("--format", help="Without it, by the file's name."),
    ] = None,
    map_: _Map = None,
    set_: _Set = None,
    ignore_unmapped: Annotated[
        bool, typer.Option("--ignore-unmapped", help="CSV: leave out columns that are no field.")
    ] = False,
    delimiter: Annotated[
        str | None, typer.Option(help="CSV: one character, or tab. Without it, a comma.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Store the good rows, name and count the bad ones.")
    ] = False,
    rejects: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write bad rows here, verbatim; a new file.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate everything, store nothing.")
    ] = False,
    priority: Annotated[
        Literal["normal", "low"], typer.Option(help="low: behind all other events.")
    ] = "normal",
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Store the events of files: JSON lines or CSV, plain or gzip. Each row is stored once.

    Safe to repeat: it goes on where it was, also after a kill, and a file that is done stores
    nothing. Stops at a bad row with exit 1; what is before it is stored. Waits while the buffer
    is full. Ctrl-C ends it after the part in hand.

    Example: mm-tasks import events.jsonl.gz
    """
    given = _given(files, name, format_)
    options = _Options(
        [source("--map", words) for words in map_ or ()],
        [source("--set", words) for words in set_ or ()],
        ignore_unmapped,
        _delimiter(delimiter),
        skip_bad,
        again,
        dry_run,
        _LANES[priority],
        len(given) > 1,
    )
    if options.lane not in runtime.current().producers:
        fail("--priority low: there is no lane for backfills")
    if delimiter or map_ or set_ or ignore_unmapped:
        _refuse_unless_csv(given)
    if rejects and not (skip_bad or dry_run):
        fail("--rejects needs --skip-bad or --dry-run: otherwise the import stops at a bad row")
    tallies: list[Tally] = []
    with _stopping() as stop, ExitStack() as stack:
        refused = Rejects(rejects)
        stack.callback(refused.close)
        stack.callback(_show, tallies, dry_run=dry_run, as_json=as_json)
        for one in given:
            _import(one, options, refused, stop, tallies)
            if tallies[-1].end != "finished":
                break
    raise typer.Exit(_code(tallies, stop, dry_run=dry_run))


def _import(
    given: _Given, options: _Options, rejects: Rejects, stop: Stop, tallies: list[Tally]
) -> None:
    """Import one file, or check it; its tally is the last one, also where this raises."""
    tallies.append(Tally(given.name))
    current = runtime.current()
    project = current.settings.project
    with _stream(given) as (stream, shown):
        lines = Lines(opened(stream))
        rows, to_fields = _rows(lines, given, options, rejects)
        encode = Encoding(project, given.name, current.event_bytes_max, to_fields)
        skip_bad = options.skip_bad or options.dry_run
        reading = Reading(lines, rows, encode, skip_bad=skip_bad, stop=stop)
        with watching(shown, rejects, is_one_of_many=options.is_one_of_many) as watch:
            if options.dry_run:
                tallies[-1] = check(reading, given.name, watch)
            else:
                _store(lines, reading, options, (given, watch, stop), tallies)


def _store(
    lines: Lines,
    reading: Reading,
    options: _Options,
    about: tuple[_Given, Watching, Stop],
    tallies: list[Tally],
) -> None:
    given, watch, stop = about
    current = runtime.current()
    buffer = current.producers[options.lane]
    positions = Positions(current.worker_redis, current.settings.project)
    one = Import(positions, buffer, given.name, watch, stop)
    tallies[-1] = one.tally
    one.resume(lines, again=options.again)
    one.store(reading, partial(_nudge, buffer.lane))


def _nudge(lane: str) -> None:
    from mm_tasks.celery_app import FLUSH, QUEUES, nudge  # noqa: PLC0415 - slow to import

    nudge(FLUSH, (lane,), QUEUES[lane])


def _rows(
    lines: Lines, given: _Given, options: _Options, rejects: Rejects
) -> tuple[Iterable[Row], Callable[[Any], dict[str, Any]]]:
    """Return the rows of a file, and what makes fields of a row's content."""
    rejects.head = b""
    if given.format == "jsonl":
        return json_rows(lines), dict
    rows = CsvRows(lines, options.delimiter)
    rejects.head = rows.header_raw
    columns = mapping(
        rows.header, options.maps, options.sets, ignore_unmapped=options.ignore_unmapped
    )
    return rows, columns


@contextmanager
def _stream(given: _Given) -> Iterator[tuple[io.BufferedReader, Shown]]:
    """Open a file, or stdin, whose size and place nobody knows."""
    if str(given.path) == _STDIN:
        yield sys.stdin.buffer, Shown(given.name, lambda: 0, None)  # type: ignore[misc]
        return
    try:
        file = given.path.open("rb")
    except OSError as error:
        fail(f"{plain(given.name)}: cannot be read: {error.strerror}")
    with file:
        about = os.fstat(file.fileno())
        is_regular = stat.S_ISREG(about.st_mode)
        shown = Shown(given.name, file.tell, about.st_size)
        yield file, shown if is_regular else Shown(given.name, lambda: 0, None)


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


def _given(files: list[Path], name: str | None, format_: str | None) -> list[_Given]:
    """Return the files to import, or end the command before the first one is touched."""
    if name is not None and len(files) > 1:
        fail("--name: names one file, and several were given")
    given = [_Given(path, _name(path, name), _format(path, format_)) for path in files]
    if len({one.name for one in given}) < len(given):
        fail("two files have the same name, by which an import is known; import them one by one")
    return given


def _name(path: Path, name: str | None) -> str:
    if str(path) != _STDIN and (not path.exists() or path.is_dir()):
        fail(f"{plain(path)}: is no file")
    if name is None and str(path) == _STDIN:
        fail("stdin needs a --name, by which the import is known when it is run again")
    found = path.name if name is None else name
    if not 0 < len(found) <= _NAME_CHARACTERS_MAX or not found.isprintable():
        fail("the name must be printable and have at most 255 characters; give a --name")
    return found


def _format(path: Path, format_: str | None) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    found = format_ or _FORMATS.get(suffix)
    if found is None:
        fail("a file's name must end in .jsonl, .ndjson or .csv, then .gz or not; or use --format")
    return found


def _delimiter(given: str | None) -> str:
    found = {None: ",", "tab": "\t", "\\t": "\t"}.get(given, given) or ""
    if len(found) != 1 or found in '"\r\n\0':
        fail("--delimiter: must be one character, or tab")
    return found


def _refuse_unless_csv(given: list[_Given]) -> None:
    if any(one.format != "csv" for one in given):
        msg = "--map, --set, --ignore-unmapped and --delimiter are for CSV alone"
        raise ImportRefused(msg)


def _code(tallies: list[Tally], stop: Stop, *, dry_run: bool) -> int:
    last = tallies[-1]
    if last.end == "stopped":
        return 128 + stop.signal
    is_refused = last.end != "finished" or (dry_run and any(one.bad for one in tallies))
    return int(is_refused)


def _show(tallies: list[Tally], *, dry_run: bool, as_json: bool) -> None:
    """Print what was done, and nothing else, on stdout."""
    if as_json:
        typer.echo(json.dumps({"dry_run": dry_run, "files": [asdict(one) for one in tallies]}))
        return
    for one in tallies:
        typer.echo(f"{plain(one.name)}: {_summary(one, dry_run=dry_run)}")


def _summary(tally: Tally, *, dry_run: bool) -> str:
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
