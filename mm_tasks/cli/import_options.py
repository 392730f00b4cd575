"""The options of `mm-tasks import`, and what is refused before a file is read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import typer

from mm_tasks.cli.output import fail, plain
from mm_tasks.events.lanes import BACKFILL, TRACK

if TYPE_CHECKING:
    from mm_tasks.imports.columns import Source

STDIN = "-"
LANES = {"normal": TRACK, "low": BACKFILL}
_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv"}
_NAME_CHARACTERS_MAX = 255

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="- is stdin.")]
Name = Annotated[str | None, typer.Option(help="What it is known by; without it, the file's name.")]
Again = Annotated[
    bool, typer.Option("--again", help="Start over from line 1: rows are sent twice.")
]
Format = Annotated[
    Literal["jsonl", "csv"] | None,
    typer.Option("--format", help="Without it, by the file's name."),
]
Maps = Annotated[
    list[str] | None,
    typer.Option(
        "--map", metavar="FIELD[:TYPE]=COLUMN", help="CSV: which column a field comes from."
    ),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD[:TYPE]=VALUE", help="CSV: the same for every row."),
]
IgnoreUnmapped = Annotated[
    bool, typer.Option("--ignore-unmapped", help="CSV: leave out columns that are no field.")
]
Delimiter = Annotated[
    str | None, typer.Option(help="CSV: one character, or tab. Without it, a comma.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Store the good rows, name and count the bad ones.")
]
RejectsFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write bad rows here, verbatim; a new file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Validate everything, store nothing.")]
Priority = Annotated[Literal["normal", "low"], typer.Option(help="low: behind all other events.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


class Given(NamedTuple):
    """One file to import."""

    path: Path
    name: str
    format: str


class Columns(NamedTuple):
    """What is said of CSV."""

    maps: list[Source]
    sets: list[Source]
    ignore_unmapped: bool
    delimiter: str | None

    @property
    def is_given(self) -> bool:
        """Say whether anything is."""
        return self != Columns([], [], ignore_unmapped=False, delimiter=None)


@dataclass(frozen=True, slots=True)
class Options:
    """What holds for all files."""

    columns: Columns
    lane: str
    skip_bad: bool
    again: bool
    dry_run: bool
    is_one_of_many: bool


def given(
    files: list[Path], name: str | None, format_: str | None, columns: Columns
) -> list[Given]:
    """Return the files to import, or end the command before the first one is touched."""
    if name is not None and len(files) > 1:
        fail("--name: names one file, and several were given")
    delimiter(columns.delimiter)
    found = [Given(path, _name(path, name), _format(path, format_)) for path in files]
    if len({one.name for one in found}) < len(found):
        fail("two files have the same name, by which an import is known; import them one by one")
    if columns.is_given and any(one.format != "csv" for one in found):
        fail("--map, --set, --ignore-unmapped and --delimiter are for CSV alone")
    return found


def delimiter(words: str | None) -> str:
    """Return the character that an option names."""
    found = {None: ",", "tab": "\t", "\\t": "\t"}.get(words, words) or ""
    if len(found) != 1 or found in '"\r\n\0':
        fail("--delimiter: must be one character, or tab")
    return found


def _name(path: Path, name: str | None) -> str:
    if str(path) != STDIN and (not path.exists() or path.is_dir()):
        fail(f"{plain(path)}: is no file")
    if name is None and str(path) == STDIN:
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
