"""The options of `mm-tasks import`, validated before a file is read."""

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

Files = Annotated[list[Path], typer.Argument(metavar="FILE", help="Files to import; - is stdin.")]
Name = Annotated[str | None, typer.Option(help="Name of the import; default: the file's name.")]
Again = Annotated[bool, typer.Option("--again", help="Start again at line 1: rows are sent twice.")]
Format = Annotated[
    Literal["jsonl", "csv"] | None,
    typer.Option("--format", help="Default: by the file's name."),
]
Maps = Annotated[
    list[str] | None,
    typer.Option("--map", metavar="FIELD[:TYPE]=COLUMN", help="CSV: the column of a field."),
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="FIELD[:TYPE]=VALUE", help="CSV: a value for every row."),
]
IgnoreUnmapped = Annotated[
    bool,
    typer.Option("--ignore-unmapped", help="CSV: ignore columns that are not mapped to a field."),
]
Delimiter = Annotated[
    str | None, typer.Option(help="CSV: one character, or tab; default: a comma.")
]
SkipBad = Annotated[
    bool, typer.Option("--skip-bad", help="Store the good rows; print and count the bad ones.")
]
RejectsFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write bad rows verbatim into this new file.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Validate everything, store nothing.")]
Priority = Annotated[Literal["normal", "low"], typer.Option(help="low: behind all other events.")]
AsJson = Annotated[bool, typer.Option("--json", help="For programs.")]


class InputFile(NamedTuple):
    """One file to import."""

    path: Path
    name: str
    format: str


class Columns(NamedTuple):
    """Options for CSV."""

    maps: list[Source]
    sets: list[Source]
    ignore_unmapped: bool
    delimiter: str | None

    @property
    def is_given(self) -> bool:
        """Return whether any option was given."""
        return self != Columns([], [], ignore_unmapped=False, delimiter=None)


@dataclass(frozen=True, slots=True)
class Options:
    """Options that hold for all files."""

    columns: Columns
    lane: str
    skip_bad: bool
    again: bool
    dry_run: bool
    is_one_of_many: bool


def input_files(
    files: list[Path], name: str | None, format_: str | None, columns: Columns
) -> list[InputFile]:
    """Return the files to import, or end the command before it opens one."""
    if name is not None and len(files) > 1:
        fail("--name: is for one file, but several were given")
    delimiter(columns.delimiter)
    inputs = [InputFile(path, _name(path, name), _format(path, format_)) for path in files]
    if len({file.name for file in inputs}) < len(inputs):
        fail("two files have the same name, which identifies an import; import them one by one")
    if columns.is_given and any(file.format != "csv" for file in inputs):
        fail("--map, --set, --ignore-unmapped and --delimiter are for CSV only")
    return inputs


def delimiter(option: str | None) -> str:
    """Return the character that the option names."""
    character = {None: ",", "tab": "\t", "\\t": "\t"}.get(option, option) or ""
    if len(character) != 1 or character in '"\r\n\0':
        fail("--delimiter: must be one character, or tab")
    return character


def _name(path: Path, name: str | None) -> str:
    if str(path) != STDIN and (not path.exists() or path.is_dir()):
        fail(f"{plain(path)}: is no file")
    if name is None and str(path) == STDIN:
        fail("stdin needs a --name, which identifies the import when it is repeated")
    name = path.name if name is None else name
    if not 0 < len(name) <= _NAME_CHARACTERS_MAX or not name.isprintable():
        fail("the name must be printable and have at most 255 characters; give a --name")
    return name


def _format(path: Path, format_: str | None) -> str:
    suffix = Path(path.name.lower().removesuffix(".gz")).suffix
    known = format_ or _FORMATS.get(suffix)
    if known is None:
        fail("a file's name must end in .jsonl, .ndjson or .csv, optionally .gz; or use --format")
    return known
