"""Progress of a running import on stderr: bad rows, position, and why it waits.

A terminal gets a bar, everything else plain lines. Rejected rows can also go to a file,
verbatim, to be corrected and imported as another file.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from mm_tasks.cli.output import new_private_file, plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mm_tasks.imports.chunks import BadRow
    from mm_tasks.imports.importer import ImportResult

_LINE_EVERY_S = 10.0


class Shown(NamedTuple):
    """One file: its name, the position of the reader, and its size (None if unknown)."""

    name: str
    position: Callable[[], int] = int
    size: int | None = None


class Rejects:
    """A new private file of rejected rows; without a path nothing is written."""

    def __init__(self, path: str | None) -> None:
        """Create the file; raises `BadParameter` if it exists or cannot be created."""
        self._file = None if path is None else new_private_file(path, "--rejects")
        self._written_head = self.head = b""

    def write(self, rows: list[BadRow]) -> None:
        """Append rejected rows (CSV: with the header) and flush."""
        if self._file is None or not rows:
            return
        if self.head != self._written_head:
            self._written_head = self.head
            self._file.write(_line(self.head))
        self._file.writelines(_line(row.raw) for row in rows)
        self._file.flush()

    def close(self) -> None:
        """Close the file; may be repeated."""
        if self._file is not None:
            self._file.close()


class ProgressLines:
    """A `ProgressListener` that prints a line every ten seconds."""

    def __init__(self, shown: Shown, rejects: Rejects, *, is_one_of_many: bool) -> None:
        """Take the file, and the rejects that bad rows are written to."""
        self._shown = shown
        self._rejects = rejects
        self._prefix = f"{plain(shown.name)}: " if is_one_of_many else ""
        self._began_s = time.monotonic()
        self._printed_s = {"progress": self._began_s}

    def bad(self, rows: list[BadRow]) -> None:
        """Write the rows to the rejects, then print every rule that each of them breaks."""
        self._rejects.write(rows)
        for row in rows:
            for problem in row.problems:
                self.write(f"{self._prefix}line {row.line}: {problem}")

    def progress(self, tally: ImportResult) -> None:
        """Print the position, every ten seconds."""
        if self._is_time("progress"):
            size = self._shown.size
            part = f", {100 * self._shown.position() // size} %" if size else ""
            self.write(f"{self._prefix}{_rows(tally)} rows, {self.rate(tally)}{part}")

    def waiting(self, why: str) -> None:
        """Print why the import waits, every ten seconds."""
        if self._is_time(why):
            self.write(f"{self._prefix}waiting {why}")

    def write(self, line: str) -> None:
        """Print one line."""
        typer.echo(line, err=True)

    def rate(self, tally: ImportResult) -> str:
        """Return the mean rate of this run."""
        took_s = max(time.monotonic() - self._began_s, 0.001)
        return f"{_rows(tally) / took_s:,.0f}/s"

    def _is_time(self, topic: str) -> bool:
        now_s = time.monotonic()
        is_time = now_s - self._printed_s.get(topic, -_LINE_EVERY_S) >= _LINE_EVERY_S
        if is_time:
            self._printed_s[topic] = now_s
        return is_time


class ProgressBar(ProgressLines):
    """A `ProgressListener` for a terminal: a bar with rows, rate and time left, below lines."""

    def __init__(
        self, shown: Shown, rejects: Rejects, bar: Progress, *, is_one_of_many: bool
    ) -> None:
        """Take the file, the rejects, and the bar on the screen."""
        super().__init__(shown, rejects, is_one_of_many=is_one_of_many)
        self._bar = bar
        self._task = bar.add_task(str(plain(shown.name)), total=shown.size, rows=0, rate="", why="")

    def progress(self, tally: ImportResult) -> None:
        """Move the bar."""
        self._bar.update(
            self._task,
            completed=self._shown.position(),
            rows=_rows(tally),
            rate=self.rate(tally),
            why="",
        )

    def waiting(self, why: str) -> None:
        """Show beside the bar why the import waits."""
        self._bar.update(self._task, why=f"waiting {why}")

    def write(self, line: str) -> None:
        """Print one line above the bar."""
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def watching(shown: Shown, rejects: Rejects, *, is_one_of_many: bool) -> Iterator[ProgressLines]:
    """Show the import of one file until the block ends."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ProgressLines(shown, rejects, is_one_of_many=is_one_of_many)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rows]:,} rows {task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[why]}"),
    )
    with Progress(*columns, console=console) as bar:
        yield ProgressBar(shown, rejects, bar, is_one_of_many=is_one_of_many)


def _rows(tally: ImportResult) -> int:
    return tally.stored + tally.suppressed + tally.bad


def _line(raw: bytes) -> bytes:
    return raw if raw.endswith(b"\n") else raw + b"\n"
